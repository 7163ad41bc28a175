"""The section that says what a task's answers look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from adapterhub.errors import ConfigError

from .section import Section
from .values import Names, NonEmpty


def _schema_text(value: Any) -> Any:
    """Return a JSON schema as its text: what sorts a record's keys must not change the order of its properties."""
    if value is None:
        return value
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON schema, or the name of a file that holds one ({error})") from error
    if not isinstance(schema, dict):
        raise ValueError("must be a JSON schema, or the name of a file that holds one")  # noqa: TRY004 - as pydantic asks
    return text


class OutputRule(Section):
    """What every answer looks like, said in one of three ways; of `json_schema` the text is kept."""

    json_schema: Annotated[str | None, BeforeValidator(_schema_text)] = None
    choices: Names | None = None
    regex: NonEmpty | None = None

    @model_validator(mode="after")
    def _one_way(self) -> OutputRule:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of json_schema, choices and regex, not {' and '.join(given) or 'none'}")
        return self


def read_schema_file(record: dict[str, Any], file: Path) -> None:
    """Put a schema that is in a file of its own into `record`, the recipe in `file`: from here on it is whole.

    Raises ConfigError where the file cannot be read.
    """
    section = record.get("output")
    if not isinstance(section, dict):
        return
    name = section.get("json_schema")
    if not isinstance(name, str) or not name or name.lstrip().startswith("{"):
        return
    path = file.parent / name
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: output.json_schema is {name!r}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: output.json_schema is {name!r}, which cannot be read ({error})") from error
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{path}: a JSON schema is an object; this holds {type(schema).__name__}")
    record["output"] = {**section, "json_schema": schema}
