"""The bodies of requests, in OpenAI's format plus vLLM's sampling fields; answers are built in `answers`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from adapterhub.data.output import Output

from .fields import MAX_TOKEN_ID, Content, Inputs, Prompts, Stops, TemplateFields, Text, WireModel, encodable, refusal
from .output import ResponseFormat, StructuredOutputs

HARMLESS = frozenset(
    {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
SAMPLING_NEUTRAL = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": {},
    "min_p": 0,
    "stop_token_ids": [],
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "use_beam_search": False,
    "store": False,
}
COMPLETION_NEUTRAL = MappingProxyType({**SAMPLING_NEUTRAL, "best_of": 1, "echo": False, "suffix": ""})
CHAT_NEUTRAL = MappingProxyType(
    {
        **SAMPLING_NEUTRAL,
        "tools": [],
        "tool_choice": "none",
        "functions": [],
        "function_call": "none",
        "modalities": ["text"],
        "audio": None,
        "prediction": None,
        "reasoning_effort": None,
        "verbosity": None,
        "web_search_options": None,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "chat_template": None,
        "chat_template_kwargs": {},
    }
)
# Above anything a base can take, and small enough for every machine integer and every message.
MAX_COUNT = MAX_TOKEN_ID
MAX_CHOICES = 128


def _top_k(value: Any) -> Any:
    # vLLM's clients write -1 for "all tokens"; here that is 0.
    return 0 if value == -1 and type(value) is int else value


class StreamOptions(WireModel):
    """What a stream carries besides text."""

    harmless: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    include_usage: bool = False


class SamplingFields(WireModel):
    """The fields that completions and chat share; None means that the request left it out."""

    model: Text
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_COUNT)
    min_tokens: int = Field(0, ge=0, le=MAX_COUNT)
    ignore_eos: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: Annotated[int, BeforeValidator(_top_k)] = Field(0, ge=0, le=MAX_COUNT, json_schema_extra={"minimum": -1})
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options needs stream = true", "stream_options")
        limit = self.token_limit
        if limit is not None and self.min_tokens > limit:
            raise refusal(f"min_tokens = {self.min_tokens} is above max_tokens = {limit}", "min_tokens")
        if self.response_format is not None and self.structured_outputs is not None:
            raise refusal("response_format and structured_outputs both say what to write; give one", "response_format")
        return self

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, or None where the request does not say."""
        return self.max_tokens

    @property
    def output(self) -> Output | None:
        """The rule that the answer keeps; None where the request does not say."""
        return self.response_format or self.structured_outputs

    @property
    def output_field(self) -> str:
        """The field that holds the rule."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """How many alternatives to report per token; 0 is the chosen one alone, None is no log-probabilities."""

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(SamplingFields):
    """`POST /v1/completions`."""

    harmless: ClassVar[frozenset[str]] = HARMLESS
    neutral: ClassVar[Mapping[str, Any]] = COMPLETION_NEUTRAL
    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _few_choices(self) -> CompletionBody:
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise refusal(f"{len(self.prompt)} prompts and n = {self.n} are more than {MAX_CHOICES} choices", "n")
        return self

    @property
    def alternatives(self) -> int | None:
        """OpenAI's `logprobs` of completions is the number itself."""
        return self.logprobs


class Message(WireModel):
    """One turn of a chat; keys that an answer of ours or OpenAI's carries may come back empty."""

    neutral: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"refusal": None, "audio": None, "function_call": None, "tool_calls": [], "annotations": [], "name": None}
    )
    role: Literal["system", "user", "assistant"] = Field(
        json_schema_extra={"enum": ["system", "developer", "user", "assistant"]}
    )
    content: Content

    @field_validator("role", mode="before")
    @classmethod
    def _role(cls, value: Any) -> Any:
        if value in ("tool", "function"):
            raise refusal(f"role {value!r} is not supported here", unsupported=True)
        return "system" if value == "developer" else value


class ChatBody(SamplingFields):
    """`POST /v1/chat/completions`; `template_fields` holds the further fields of a task's prompt template."""

    harmless: ClassVar[frozenset[str]] = HARMLESS | {"parallel_tool_calls"}
    neutral: ClassVar[Mapping[str, Any]] = CHAT_NEUTRAL
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_COUNT)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    template_fields: TemplateFields | None = None

    @field_validator("messages", mode="after")
    @classmethod
    def _open(cls, turns: list[Message]) -> list[Message]:
        if turns[-1].role == "assistant":
            raise refusal("the last message is the assistant's; continuing an assistant turn is not supported")
        return turns

    @model_validator(mode="after")
    def _consistent_chat(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs needs logprobs = true", "top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise refusal(
                f"max_tokens = {both[0]} and max_completion_tokens = {both[1]} differ; give one", "max_tokens"
            )
        return self

    @property
    def token_limit(self) -> int | None:
        """OpenAI renamed the field for chat; the old name still works."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """OpenAI's chat asks in two fields: whether, and how many."""
        return (self.top_logprobs or 0) if self.logprobs else None


class EmbeddingBody(WireModel):
    """`POST /v1/embeddings`: a text, an object of fields for the task's template, or a list of these."""

    harmless: ClassVar[frozenset[str]] = HARMLESS
    neutral: ClassVar[Mapping[str, Any]] = MappingProxyType({"dimensions": None})
    model: Text
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"


class ClassifyBody(WireModel):
    """`POST /v1/classify`: a text, an object of fields for the task's template, or a list of these."""

    harmless: ClassVar[frozenset[str]] = HARMLESS
    model: Text
    input: Inputs


class AdapterBody(WireModel):
    """`POST /v1/adapters/{load,pin,unpin,unload}`: the ref of a published version."""

    model: Text


class LoadLoraBody(WireModel):
    """`POST /v1/load_lora_adapter`, as vLLM takes it."""

    neutral: ClassVar[Mapping[str, Any]] = MappingProxyType({"load_inplace": False, "is_3d_lora_weight": False})
    lora_name: Text
    lora_path: Text | None = None


class UnloadLoraBody(WireModel):
    """`POST /v1/unload_lora_adapter`, as vLLM takes it."""

    harmless: ClassVar[frozenset[str]] = frozenset({"lora_int_id"})
    lora_name: Text


class FeedbackBody(WireModel):
    """`POST /v1/feedback`: an answer's id, the index of its entry or choice, and what is right in its place."""

    id: Text
    index: int = Field(0, ge=0, le=MAX_COUNT)
    label: Text | None = None
    labels: Annotated[list[str], AfterValidator(encodable)] | None = None
    completion: Text | None = None
