"""What differs between two versions: recipe, rows, weights layer by layer, metrics. Nothing is answered for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.registry.bundle import ROWS_FILE
from adapterhub.registry.card import Card
from adapterhub.registry.rows import RowsChange, compare_rows
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class SplitChange:
    """One split's data in both cards; `rows` says which rows moved, None where one version did not keep that."""

    first: Mapping[str, Any] | None
    second: Mapping[str, Any] | None
    rows: RowsChange | None

    @property
    def same(self) -> bool:
        """Whether both saw equal rows."""
        hashes = [None if side is None else side.get("sha256") for side in (self.first, self.second)]
        return hashes[0] is not None and hashes[0] == hashes[1]


@dataclass(frozen=True)
class LayerChange:
    """Norms of a layer's update (all its modules) in the first, in the second, and of the difference."""

    layer: str
    first: float
    second: float
    apart: float


@dataclass(frozen=True)
class Diff:
    """What `diff` found. `recipe` and `metrics` hold (first, second) by name, None where one has none."""

    first: Version
    second: Version
    recipe: Mapping[str, tuple[Any, Any]]
    data: Mapping[str, SplitChange]
    metrics: Mapping[str, tuple[float | None, float | None]]
    layers: list[LayerChange]
    head: Mapping[str, float | None]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        data = {
            split: {
                "same": change.same,
                "first": change.first,
                "second": change.second,
                "rows": None if change.rows is None else change.rows.to_record(),
            }
            for split, change in self.data.items()
        }
        return {
            "first": self.first.ref,
            "second": self.second.ref,
            "recipe": {key: {"first": a, "second": b} for key, (a, b) in self.recipe.items()},
            "data": data,
            "metrics": {key: {"first": a, "second": b} for key, (a, b) in self.metrics.items()},
            "layers": [dict(vars(each)) for each in self.layers],
            "head": dict(self.head),
        }


def diff(first: str, second: str, registry: Registry) -> Diff:
    """Compare what two versions were made of and what came of it; raises RefNotFound and CorruptAdapter."""
    versions = registry.resolve(first), registry.resolve(second)
    cards = versions[0].card(), versions[1].card()
    recipes = [dict(_flat(card.recipe)) for card in cards]
    layers, head = _weights(*versions)
    return Diff(
        *versions,
        recipe={
            key: (recipes[0].get(key), recipes[1].get(key))
            for key in sorted({*recipes[0], *recipes[1]})
            if recipes[0].get(key) != recipes[1].get(key)
        },
        data=_data(versions, cards),
        metrics={
            name: (_value(cards[0], name), _value(cards[1], name)) for name in {**cards[0].metrics, **cards[1].metrics}
        },
        layers=layers,
        head=head,
    )


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("training.epochs", 3.0) and so on."""
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _value(card: Card, metric: str) -> float | None:
    return card.metrics[metric]["value"] if metric in card.metrics else None


def _data(versions: tuple[Version, Version], cards: tuple[Card, Card]) -> dict[str, SplitChange]:
    texts = [version.attached(ROWS_FILE) for version in versions]
    moved = {} if None in texts else compare_rows(str(texts[0]), str(texts[1]))
    return {
        split: SplitChange(cards[0].data.get(split), cards[1].data.get(split), moved.get(split))
        for split in {**cards[0].data, **cards[1].data}
    }


def _weights(first: Version, second: Version) -> tuple[list[LayerChange], dict[str, float | None]]:
    from adapterhub.lora.distance import head_distances, update_norms
    from adapterhub.lora.files import read_adapter

    one, other = (read_adapter(version.path) for version in (first, second))
    squares: dict[str, list[float]] = {}
    for module, norms in update_norms(one, other).items():
        match = _LAYER.search(module)
        sums = squares.setdefault(match[1] if match else module, [0.0, 0.0, 0.0])
        for index, norm in enumerate(norms):
            sums[index] += norm**2
    layers = [LayerChange(layer, *(each**0.5 for each in sums)) for layer, sums in squares.items()]
    layers.sort(key=lambda each: (not each.layer.isdigit(), int(each.layer) if each.layer.isdigit() else 0, each.layer))
    return layers, head_distances(one.head, other.head)
