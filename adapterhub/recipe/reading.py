"""A recipe file read, overridden and checked; whatever is wrong is told by file, key and value."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from adapterhub.errors import ConfigError

from .output import read_schema_file
from .plain_yaml import parse_yaml
from .schema import FORMS, Recipe
from .section import Section


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, then apply `overrides` such as `training.epochs=1` (the value is YAML).

    Raises ConfigError, which names file, key and value of everything that is wrong.
    """
    file = Path(path)
    return recipe_from(_read(file), file, overrides)


def recipe_from(record: dict[str, Any], file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Make a recipe of a record such as `Recipe.to_record` gives, as if it stood in `file`; raises as `load_recipe`."""
    overridden = {_override(record, text) for text in overrides}
    _replace_length(record, overridden)
    read_schema_file(record, file)
    try:
        return Recipe.model_validate({**record, "path": file})
    except ValidationError as error:
        problems = [_problem(detail, file, overridden) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such recipe file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the recipe cannot be read as UTF-8 text ({error})") from error
    record = parse_yaml(text, str(file))
    if not isinstance(record, dict):
        found = "is empty" if record is None else f"holds {record!r}"
        raise ConfigError(f"{file}: the recipe {found}; expected keys such as task, base, kind and data")
    if "path" in record:
        raise ConfigError(f"{file}: unknown key 'path'; where the data is goes under data, e.g. data.train")
    return record


def _override(record: dict[str, Any], text: str) -> tuple[str, ...]:
    """Put one `a.b=c` into `record`; return the keys that lead to it."""
    dotted, equals, value = text.partition("=")
    keys = tuple(key.strip() for key in dotted.split("."))
    if not equals or not all(keys) or keys == ("path",):
        raise ConfigError(f"--set {text}: expected KEY=VALUE with a key of the recipe, e.g. --set training.epochs=1")
    inner = record
    for key in keys[:-1]:
        if inner.get(key) is None:
            inner[key] = {}
        inner = inner[key]
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text}: {key!r} holds {inner!r}, which has no keys below it")
    inner[keys[-1]] = parse_yaml(value, f"--set {text}")
    return keys


def _replace_length(record: dict[str, Any], overridden: set[tuple[str, ...]]) -> None:
    """Drop the file's epochs where steps were overridden, and the other way round: the override is meant instead.

    So with rows and tokens of a batch.
    """
    pairs = (("epochs", "steps"), ("batch_size", "batch_tokens"))
    for given, other in (*pairs, *(pair[::-1] for pair in pairs)):
        training = record.get("training")
        replaced = ("training", given) in overridden and ("training", other) not in overridden
        if replaced and isinstance(training, dict):
            training.pop(other, None)


_MESSAGES = {"model_type": "must be a section with keys of its own", "string_too_short": "must not be empty"}


def _problem(detail: ErrorDetails, file: Path, overridden: set[tuple[str, ...]]) -> str:
    keys = _keys(detail["loc"])
    place = f"--set {'.'.join(keys)}" if any(keys[: len(given)] == given for given in overridden) else str(file)
    dotted = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key {dotted!r}; {_nearest(keys)}"
    if detail["type"] == "missing":
        return f"{place}: the key {dotted!r} is missing; every recipe needs it"
    message = _MESSAGES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace(
        "Input should", "must"
    )
    if not keys or isinstance(detail["input"], dict):
        return f"{place}: {dotted}{': ' if dotted else ''}{message}"
    hint = "; put quotes around it" if detail["type"] == "string_type" and _is_scalar(detail["input"]) else ""
    return f"{place}: {dotted} is {detail['input']!r}: {message}{hint}"


def _keys(location: Sequence[int | str]) -> tuple[str, ...]:
    """Return the keys that lead to a problem; the form of `labels` is no key."""
    named = [str(key) for key in location]
    if named[:1] == ["labels"] and named[1:2] and named[1] in FORMS:
        del named[1]
    return tuple(named)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _nearest(keys: Sequence[str]) -> str:
    """Name the known key that was probably meant, in its section or anywhere else, or list what the section knows."""
    known = sorted(_known_keys())
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == ".".join(keys[:-1])]
    close = difflib.get_close_matches(keys[-1], beside, n=1)
    if close:
        return f"did you mean {'.'.join([*keys[:-1], close[0]])!r}?"
    elsewhere = [key for key in known if key.rpartition(".")[2] == keys[-1]]
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    return f"known here: {', '.join(beside)}"


def _known_keys(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if name != "path":
            yield prefix + name
        for inner in _sections(field.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """Yield the section that a key may hold, alone or as one of its forms."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
