"""Datasets of the Hugging Face Hub as streams of raw records (the `datasets` extra)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import AdapterHubError, DataError, UsageError

from .readers import Record, plain

PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<split>[^:@]+))?")


@dataclass(frozen=True)
class DatasetName:
    """`hf:NAME[:config][@split]`; without a split, train."""

    name: str
    config: str | None = None
    split: str = "train"


def parse_dataset_name(text: str) -> DatasetName:
    """Read `hf:NAME[:config][@split]`; raises DataError where it is anything else."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise DataError(f"{text!r} does not name a dataset; expected hf:NAME, hf:NAME:config or hf:NAME:config@split")
    return DatasetName(match["name"], match["config"], match["split"] or "train")


def read_dataset(text: str) -> Iterator[Record]:
    """Yield each row of a dataset as it streams in; numbered class labels become their names.

    Raises UsageError without the `datasets` extra, DataError where the dataset cannot be loaded.
    """
    name = parse_dataset_name(text)
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{text}: reading a dataset needs datasets: pip install 'adapterhub[datasets]'") from error
    try:
        stream = datasets.load_dataset(name.name, name.config, split=name.split, streaming=True)
        features: Mapping[str, Any] = stream.features or {}
        for number, row in enumerate(stream, start=1):
            where = f"{text}:{number}"
            yield where, {key: plain(_named(value, features.get(key)), key, where) for key, value in row.items()}
    except AdapterHubError:
        raise
    except Exception as error:  # A dataset brings the errors of whatever reads it: scripts, tables, the network.
        raise DataError(f"{text}: the dataset cannot be loaded ({_reason(error)})") from error


def _named(value: Any, feature: Any) -> Any:
    """Return the name of a class label that is stored as its number, also inside a list; -1 stands for none."""
    inner = getattr(feature, "feature", None)
    if isinstance(value, list) and inner is not None:
        return [_named(item, inner) for item in value]
    if isinstance(value, int) and hasattr(feature, "int2str"):
        return None if value < 0 else feature.int2str(value)
    return value


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
