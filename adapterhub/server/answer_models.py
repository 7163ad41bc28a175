"""The forms of whole answers, as `/openapi.json` tells them.

Answers are built as plain dictionaries (`answers`, `classify`, …); nothing of this runs when a request is answered.
Every model is closed, so that a key of an answer that stands nowhere here is a failing test.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import SkipJsonSchema

from adapterhub.data.task import Kind
from adapterhub.runtime.stream import FinishReason

# Fields that may be this are absent where there is nothing to tell; they are never null.
Absent = SkipJsonSchema[None]


def _without_defaults(schema: dict[str, Any]) -> None:
    # An absent key means that there is nothing to tell, not the default.
    for field in schema["properties"].values():
        field.pop("default", None)


class Told(BaseModel):
    """A JSON object of an answer: exactly these keys, those without a default always."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_without_defaults)


class Usage(Told):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alternative(Told):
    """A token that was likely in a place; `bytes` is null where it is a part of a character that is not known."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(Alternative):
    """A token of an answer, and the likeliest ones in its place."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Told):
    """The tokens of a chat's choice."""

    content: list[ChatToken]
    refusal: None


class ChatMessage(Told):
    """What was said."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Told):
    """One answer of a chat; `logprobs` is null where none were asked for."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Told):
    """What `/v1/chat/completions` answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Told):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | Absent = None
    content: str | Absent = None


class ChatChunkChoice(Told):
    """What a chunk adds to a choice; the last one of a choice gives `finish_reason`."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Told):
    """An event of a chat's stream.

    Where `stream_options.include_usage` asks for it, `usage` is null until a last chunk without choices gives it.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Told):
    """The tokens of a completion's choice, as parallel lists; `top_logprobs` holds the sampled token too."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Told):
    """One continuation; `logprobs` is null where none were asked for."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(Told):
    """What `/v1/completions` answers: `n` choices a prompt, those of one prompt next to each other."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Told):
    """What a chunk adds to a choice; the last one of a choice gives `finish_reason`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(Told):
    """An event of a completion's stream; `usage` as in a chat's."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class Labelled(Told):
    """One input's label (null where the task finds none likely enough) or labels, and the probability of each."""

    index: int
    label: str | None = None
    labels: list[str] | Absent = None
    probs: dict[str, float]


class ClassifyAnswer(Told):
    """What `/v1/classify` answers: an entry an input, in order, with `labels` for a multilabel task, else `label`."""

    id: str
    object: Literal["list"]
    model: str
    data: list[Labelled]
    usage: Usage


class Vector(Told):
    """One input's vector: numbers, or base64 of little-endian float32 where `encoding_format` asks for it."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Told):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Told):
    """What `/v1/embeddings` answers: an entry an input, in order."""

    object: Literal["list"]
    model: str
    data: list[Vector]
    usage: EmbeddingUsage


class Noted(Told):
    """What `/v1/feedback` answers; `agrees` says whether the answer was right as it was."""

    object: Literal["feedback"]
    id: str
    index: int
    model: str
    digest: str | None
    agrees: bool


class ModelEntry(Told):
    """A name that can be asked; `parent` and `digest` are null for the base itself."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["adapterhub"]
    parent: str | None
    kind: Literal["base"] | Kind
    digest: str | None


class ModelList(Told):
    """What `/v1/models` answers: what the key may ask."""

    object: Literal["list"]
    data: list[ModelEntry]


class AdapterEntry(Told):
    """A published version, and where its adapter is."""

    id: str
    object: Literal["adapter"]
    task: str
    version: int
    aliases: list[str]
    digest: str
    kind: Kind
    residency: Literal["slot", "memory", "disk"]
    pinned: bool


class AdapterList(Told):
    """What `/v1/adapters` answers."""

    object: Literal["list"]
    data: list[AdapterEntry]


class Health(Told):
    """What `/health` answers."""

    status: Literal["ok"]


class Ready(Told):
    """What `/ready` answers."""

    status: Literal["ready"]


class ErrorDetail(Told):
    """What was wrong, as OpenAI tells it."""

    message: str
    type: Literal["invalid_request_error", "permission_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(Told):
    """The body of every refusal, and the last event of a stream that breaks off."""

    error: ErrorDetail
