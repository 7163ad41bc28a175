"""What a request says its answer must look like: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from adapterhub.data.output import MOST_CHOICES, Output
from adapterhub.errors import InvalidRequest

from .fields import refusal, shorten

# OpenAI's `strict` may be either: a schema is always kept to the letter. The other two are for people.
_NAMED: Mapping[str, type] = {"name": str, "schema": dict, "strict": bool, "description": str}


def _response_format(value: Any) -> Output:
    """Return the rule of a `response_format`; for OpenAI's "text" it is any text, even of a task with a rule."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    known = {"text": {"type"}, "json_object": {"type"}, "json_schema": {"type", "json_schema"}}
    if not isinstance(kind, str) or kind not in known:
        raise refusal(f"response_format must be {{'type': one of {', '.join(known)}}}; got {shorten(value)}")
    _check_keys(value, known[kind])
    if kind == "text":
        return Output.text()
    if kind == "json_object":
        return Output.json({"type": "object"})
    named = value.get("json_schema")
    if not isinstance(named, Mapping) or not isinstance(named.get("schema"), Mapping):
        raise refusal(f"json_schema must be {{'name': …, 'schema': {{…}}}}; got {shorten(named)}", "json_schema")
    _check_keys(named, _NAMED, "json_schema.")
    for key, wanted in _NAMED.items():
        if named.get(key) is not None and not isinstance(named[key], wanted):
            message = f"json_schema.{key} must be of type {wanted.__name__}; got {shorten(named[key])}"
            raise refusal(message, f"json_schema.{key}")
    return _read(Output.json, named["schema"], "json_schema.schema")


def _structured(value: Any) -> Output:
    """Return the rule of vLLM's `structured_outputs`, which holds exactly one of its forms."""
    given = {key: each for key, each in value.items() if each is not None} if isinstance(value, Mapping) else {}
    if len(given) != 1:
        forms = "one of json, choice, regex and json_object"
        raise refusal(f"structured_outputs must hold exactly {forms}; got {shorten(value)}")
    ((form, rule),) = given.items()
    if form == "json_object" and rule is True:
        return Output.json({"type": "object"})
    readers: dict[str, Callable[[Any], Output]] = {"json": Output.json, "choice": Output.choices, "regex": Output.regex}
    if form not in readers:
        raise refusal(f"{shorten(form)} is not supported here; use json, choice, regex or json_object", form)
    return _read(readers[form], rule, form)


def _read(reader: Callable[[Any], Output], rule: Any, field: str) -> Output:
    try:
        return reader(rule)
    except InvalidRequest as error:
        raise refusal(str(error), field) from error


def _check_keys(value: Mapping[str, Any], known: Collection[str], where: str = "") -> None:
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise refusal(f"unknown field {shorten(unknown)}; known are {', '.join(sorted(known))}", f"{where}{unknown}")


def _object(properties: Mapping[str, Any], required: Collection[str] = (), more: Any = False) -> dict[str, Any]:
    record = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {**record, "additionalProperties": more}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), {"type": "null"}]}


_TEXT_OR_NULL = _or_null({"type": "string"})
_NAMED_SCHEMA = _object(
    {
        "name": _TEXT_OR_NULL,
        "description": _TEXT_OR_NULL,
        "schema": {"type": "object"},
        "strict": _or_null({"type": "boolean"}),
    },
    ["schema"],
)
_CHOICES = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MOST_CHOICES}
ResponseFormat = Annotated[
    Output,
    BeforeValidator(_response_format),
    WithJsonSchema(
        {
            "oneOf": [
                _object({"type": {"const": "text"}}, ["type"]),
                _object({"type": {"const": "json_object"}}, ["type"]),
                _object({"type": {"const": "json_schema"}, "json_schema": _NAMED_SCHEMA}, ["type", "json_schema"]),
            ]
        }
    ),
]
# Exactly one of them must not be null, which the description leaves to the message.
StructuredOutputs = Annotated[
    Output,
    BeforeValidator(_structured),
    WithJsonSchema(
        _object(
            {
                "json": _or_null({"type": "object"}),
                "choice": _or_null(_CHOICES),
                "regex": _or_null({"type": "string", "minLength": 1}),
                "json_object": {"enum": [True, None]},
            },
            more={"type": "null"},
        )
    ),
]
