"""What is odd about rows of pairs: a text may come in many of them, so other things than its coming twice are odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from adapterhub.data.example import Example
from adapterhub.data.prompt import input_text
from adapterhub.recipe import Kind

PAIRED: frozenset[Kind] = frozenset({"preference", "embedding"})


def count_texts(examples: Sequence[Example], kind: Kind) -> dict[str, int]:
    """Return how many different prompts, or texts, positives and hard negatives there are; {} for other kinds."""
    if kind == "preference":
        return {"prompts": len({input_text(example, kind) for example in examples})}
    if kind != "embedding":
        return {}
    counts = {
        "texts": len({example.text for example in examples}),
        "positives": len({example.positive for example in examples}),
        "negatives": len({example.negative for example in examples} - {None}),
    }
    return {name: count for name, count in counts.items() if count}


def pair_warnings(source: str, kind: Kind, by_text: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Yield that rows are equal, and that rows say the opposite of each other. `by_text` groups rows by their input."""
    equal: list[Example] = []
    for rows in by_text.values():
        seen: set[tuple[str, ...]] = set()
        for row in rows:
            equal += [row] if _pair(row) in seen else []
            seen.add(_pair(row))
    if equal:
        yield f"{source}: {len(equal)} row(s) equal to an earlier one, the first at {equal[0].where}"
    torn = [pair for rows in by_text.values() for pair in _opposites(rows, kind)]
    if torn:
        what = "preference(s) that another row reverses"
        if kind == "embedding":
            what = "negative(s) that are a positive of the same text in another row"
        yield f"{source}: {len(torn)} {what}, the first at {torn[0][0].where} and {torn[0][1].where}"


def _pair(row: Example) -> tuple[str, ...]:
    return row.completions or (str(row.positive), str(row.negative))


def _opposites(rows: Sequence[Example], kind: Kind) -> Iterator[tuple[Example, Example]]:
    """Yield rows of one input that contradict each other: (b over a after a over b), or (negative, positive)."""
    positives = {row.positive: row for row in reversed(rows)}
    before: dict[tuple[str, ...], Example] = {}
    for row in rows:
        if kind == "embedding":
            other = None if row.negative is None else positives.get(row.negative)
        else:
            other = before.get(_pair(row)[::-1])
            before.setdefault(_pair(row), row)
        if other is not None:
            yield other, row
