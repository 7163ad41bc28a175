"""The card: what a version was made of and how good it is, as one JSON record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from adapterhub.errors import CorruptAdapter, UsageError

FORMAT = 1


@dataclass(frozen=True)
class Card:
    """One version's card. Publishing fills in `task`, `digest` and, where it is empty, `created_at`.

    base: name, public_id, fingerprint, derived_from and, from the Hub, revision. recipe: the recipe's record. data:
    split → name, rows, sha256 of its content ids. metrics: name → value, low, high, measured on the split
    `measured_on`. training: steps, seconds, examples_per_second, tokens_per_second, peak_memory_bytes, precision, seed.
    calibration: the temperature and the probability to give no label below, each with its reason.
    labelling: how the labels of the training rows were made, where a program made them: voters with their hashes, the
    label model, corrections. curation: which share of the training rows was kept, by which metric, seed and base, and
    the sha256 of their ids.
    packages: name → version. parents: refs or digests this version was made from. files: attached file → sha256 (64 hex
    digits) of it. created_at: UTC, ISO 8601. Keys of a
    later program are kept in `extra`.
    """

    kind: str
    base: Mapping[str, Any]
    task: str = ""
    digest: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured_on: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    labelling: Mapping[str, Any] = field(default_factory=dict)
    curation: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    created_at: str = ""
    description: str = ""
    license: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Return the record that card.json holds."""
        known = {name: _plain(getattr(self, name)) for name in _FIELDS}
        return {**self.extra, **known, "format": FORMAT}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Card:
        """Read a record, keeping keys this program does not know; raises CorruptAdapter."""
        try:
            if record["format"] != FORMAT:
                raise CorruptAdapter(
                    f"card.json has format {record['format']!r}; upgrade this program, which reads {FORMAT}"
                )
            known = {name: _of_type(name, record[name]) for name in _FIELDS if name in record}
            extra = {key: value for key, value in record.items() if key not in _FIELDS and key != "format"}
            return cls(**known, extra=extra)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptAdapter(f"card.json is not a card: {error!r}") from error

    def to_json(self) -> str:
        """Return the canonical text; raises UsageError where a value has no place in JSON (NaN, an object)."""
        try:
            text = json.dumps(self.to_record(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the card of task {self.task!r} holds a value that JSON cannot: {error}") from error
        return text + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read what `to_json` wrote; raises CorruptAdapter."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CorruptAdapter(f"card.json is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorruptAdapter("card.json is not a JSON object")
        return cls.from_record(record)

    def public(self) -> Card:
        """Return the card without what is this machine's alone: where its base and its data lie.

        Only the keys that hold places are touched: a prompt may well begin with a slash. Raises UsageError where the
        base lacks its name, public id or fingerprint.
        """
        missing = [key for key in ("name", "public_id", "fingerprint") if not self.base.get(key)]
        if missing:
            raise UsageError(f"the card's base has no {' and no '.join(missing)}: {dict(self.base)!r}; give them")
        base = {**self.base, "name": _public_base(str(self.base["name"]), str(self.base["public_id"]))}
        recipe = dict(self.recipe)
        if "base" in recipe:
            recipe["base"] = base["name"]
        if isinstance(recipe.get("data"), Mapping):
            recipe["data"] = _public_paths(recipe["data"])
        data = {split: {**part, "name": _public_path(part.get("name"))} for split, part in self.data.items()}
        return replace(self, base=base, recipe=recipe, data=data, labelling=_public_voters(self.labelling))


_FIELDS = tuple(each.name for each in fields(Card) if each.name != "extra")
_TUPLES = frozenset({"labels", "language", "datasets", "parents"})
_MAPPINGS = frozenset(
    {"base", "recipe", "data", "metrics", "training", "calibration", "labelling", "curation", "packages", "files"}
)


def _plain(value: Any) -> Any:
    """Return `value` with mappings as dicts and tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _of_type(name: str, value: Any) -> Any:
    if name in _TUPLES:
        if not isinstance(value, list):
            raise TypeError(f"{name} is {value!r}, not a list")
        return tuple(map(str, value))
    if name in _MAPPINGS and not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r}, not an object")
    return value


def _is_place(text: str) -> bool:
    """Say whether a text is a path from this machine's root, the home folder, here or above."""
    return text.startswith(("/", "~", ".", "\\")) or PureWindowsPath(text).is_absolute()


def _public_paths(places: Mapping[str, Any]) -> dict[str, Any]:
    """Return the places of a recipe's data, those of out-of-scope rows a level below, without their folders."""
    return {
        split: _public_paths(place) if isinstance(place, Mapping) else _public_path(place)
        for split, place in places.items()
    }


def _public_voters(labelling: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how labels were made without the folders that the voters' files lie in."""
    voters = labelling.get("voters")
    if not isinstance(voters, Mapping):
        return labelling
    stripped = {
        name: {key: _public_path(value) if key in ("file", "votes_file") else value for key, value in voter.items()}
        for name, voter in voters.items()
        if isinstance(voter, Mapping)
    }
    return {**labelling, "voters": stripped}


def _public_path(place: Any) -> Any:
    if not isinstance(place, str) or not _is_place(place):
        return place
    return PureWindowsPath(place).name if "\\" in place else PurePosixPath(place).name


def _public_base(name: str, public_id: str) -> str:
    """Return a name of the base that means the same elsewhere: a folder's path does not."""
    if name.partition("@")[0] == public_id:  # A Hub id, perhaps with a revision.
        return name
    # Catalog names have no slash, so what is left with one is a path.
    is_path = "/" in name or _is_place(name) or public_id.startswith("local/")
    return public_id if is_path else name
