"""What request fields may hold: small validators that end in one plain form, so routes need no `isinstance`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from adapterhub.data.output import MOST_DEPTH, is_deep

MAX_PROMPTS = 128
MAX_INPUTS = 1024
MAX_STOPS = 32
MAX_TOKEN_ID = 2**31 - 1
# Fields that hold the user's turn; a request that set them besides would speak over it.
TURN_FIELDS = frozenset({"messages", "prompt", "text"})

Prompt = str | tuple[int, ...]
Input = str | dict[str, Any]


def refusal(reason: str, field: str = "", *, unsupported: bool = False) -> PydanticCustomError:
    """Return the error to raise in a validator; `field` is added to the path of the value under validation."""
    field = field[:80].encode("utf-8", "backslashreplace").decode()
    kind = "unsupported_field" if unsupported else "refused_value"
    return PydanticCustomError(kind, "{reason}", {"reason": reason, "field": field})


class WireModel(BaseModel):
    """A JSON object from outside: exact types, `null` means absent, and every key is known or refused.

    `harmless` keys change no answer and are accepted; `neutral` ones are not supported, so only the value that asks for
    nothing is accepted.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid")
    harmless: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for key, value in data.items():
            cls._check_key(key, value)
        return {key: _plain(value) for key, value in data.items() if value is not None and key in cls.model_fields}

    @classmethod
    def _check_key(cls, key: str, value: Any) -> None:
        if key in cls.model_fields or key in cls.harmless:
            return
        if key in cls.neutral:
            if value is not None and not _same(value, cls.neutral[key]):
                raise refusal(_unsupported(key, value, cls.neutral[key]), key, unsupported=True)
            return
        close = difflib.get_close_matches(key[:80], [*cls.model_fields, *cls.harmless, *cls.neutral], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known fields are {', '.join(cls.model_fields)}"
        raise refusal(f"unknown field {shorten(key)}{hint}", key)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the fields without effect too: they are accepted although nothing reads them; and null as absent."""
        schema = handler.resolve_ref_schema(handler(core))
        properties = schema.setdefault("properties", {})
        for key in properties.keys() - schema.get("required", ()):
            properties[key] = _nullable(properties[key])
        for key in sorted(cls.harmless):
            properties[key] = {"description": "Accepted; changes nothing."}
        for key, value in cls.neutral.items():
            properties[key] = {"enum": [value] if value is None else [value, None], "description": "Nothing else."}
        return schema


def _plain(value: Any) -> Any:
    """Return a whole number as an int: JSON has one kind of number, and 3.0 is an integer to its schemas."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _same(value: Any, neutral: Any) -> bool:
    """Say whether two values are the same in JSON, where 0 is not false."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a field that may be null besides."""
    null = {"type": "null"}
    told: JsonSchemaValue = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in told}
    options = inner["anyOf"] if inner.keys() == {"anyOf"} else [inner]
    return schema if null in options else {**told, "anyOf": [*options, null]}


def _unsupported(key: str, value: Any, neutral: Any) -> str:
    allowed = f"only {key} = {json.dumps(neutral)} is accepted" if neutral is not None else "leave it out"
    return f"{key!r} is not supported here (got {shorten(value)}); {allowed}"


def shorten(value: Any, limit: int = 80) -> str:
    """Return `repr(value)`, cut, with anything UTF-8 cannot carry replaced."""
    try:
        text = repr(value).encode("utf-8", "backslashreplace").decode()
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else text[:limit] + "…"


def encodable(value: Any) -> Any:
    """Refuse what cannot be written as JSON again: lone surrogates, NaN and infinities, and nesting without end."""
    if is_deep(value):
        raise refusal(f"lists and objects may be nested {MOST_DEPTH} deep at most")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise refusal("text must be valid Unicode; it holds a lone surrogate (\\ud800 to \\udfff)") from None
    except ValueError:
        raise refusal("numbers must be finite; JSON has no NaN and no infinity") from None
    return value


def _template_fields(fields: dict[str, Any]) -> dict[str, Any]:
    taken = sorted(TURN_FIELDS & fields.keys())
    if taken:
        raise refusal(f"template_fields must not hold {taken[0]!r}: the user message stands for it", taken[0])
    encodable(fields)
    return fields


def _strings(value: Any, what: str, limit: int) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise refusal(f"{what} must be a string or a list of strings, got {shorten(value)}")
    if len(items) > limit:
        raise refusal(f"{what} has {len(items)} entries; at most {limit} are accepted")
    encodable(items)
    return tuple(items)


def _stops(value: Any) -> tuple[str, ...]:
    stops = _strings(value, "stop", MAX_STOPS)
    if not all(stops):
        raise refusal("stop must not hold an empty string: it would end every answer before it begins")
    return stops


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(_plain(item)) is int for item in value)


def _token_ids(ids: Iterable[int]) -> tuple[int, ...]:
    ids = tuple(map(_plain, ids))
    wrong = next((item for item in ids if not 0 <= item <= MAX_TOKEN_ID), None)
    if wrong is not None:
        raise refusal(f"token id {shorten(wrong)} is outside the vocabulary")
    return ids


def _prompts(value: Any) -> tuple[Prompt, ...]:
    if _is_ids(value):
        return (_token_ids(value),)
    if isinstance(value, list) and value and all(map(_is_ids, value)):
        prompts: tuple[Prompt, ...] = tuple(map(_token_ids, value))
    elif isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        return _strings(value, "prompt", MAX_PROMPTS)
    else:
        forms = "a text, a list of texts, a list of token ids, or a list of non-empty lists of token ids"
        raise refusal(f"prompt must be {forms}; got {shorten(value)}")
    if len(prompts) > MAX_PROMPTS:
        raise refusal(f"prompt has {len(prompts)} entries; at most {MAX_PROMPTS} are accepted")
    return prompts


def _inputs(value: Any) -> tuple[Input, ...]:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise refusal("input is an empty list; there is nothing to answer")
    if len(items) > MAX_INPUTS:
        raise refusal(f"input has {len(items)} entries; at most {MAX_INPUTS} are accepted")
    for index, item in enumerate(items):
        _check_input(f"input {index}: " if isinstance(value, list) else "input ", item)
    return tuple(items)


def _check_input(where: str, item: Any) -> None:
    if not isinstance(item, str | dict):
        raise refusal(f"{where}must be a text or an object of fields; got {shorten(item)}")
    try:
        encodable(item)
    except PydanticCustomError as error:
        raise refusal(where + error.message()) from None


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refusal(f"content must be a text or a list of text parts; got {shorten(value)}")
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise refusal(f"content parts must be {{'type': 'text', 'text': …}}; got {shorten(part)}", unsupported=True)
    return "".join(part["text"] for part in value)


Text = Annotated[str, AfterValidator(encodable)]
# What may be sent, for the description; the validators say more, and say it better.
_Stop = Annotated[str, Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1)]
_Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
_ManyIds = Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
_ManyInputs = Annotated[list[Input], Field(min_length=1, max_length=MAX_INPUTS)]
_PARTS = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
    ]
}
Stops = Annotated[
    tuple[str, ...],
    BeforeValidator(_stops, json_schema_input_type=_Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)]),
]
Prompts = Annotated[
    tuple[Prompt, ...], BeforeValidator(_prompts, json_schema_input_type=str | _Texts | _Ids | _ManyIds)
]
Inputs = Annotated[tuple[Input, ...], BeforeValidator(_inputs, json_schema_input_type=Input | _ManyInputs)]
Content = Annotated[Text, BeforeValidator(_content), WithJsonSchema(_PARTS)]
TemplateFields = Annotated[
    dict[str, Any],
    AfterValidator(_template_fields),
    WithJsonSchema({"type": "object", "propertyNames": {"not": {"enum": sorted(TURN_FIELDS)}}}),
]
