"""Coverage of labels: how accuracy follows the count, and which labels have too few rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adapterhub.curation.coverage import cover, cover_fields
from adapterhub.curation.ladder import Ladder
from adapterhub.errors import DataError

SIZES = (30, 60, 120, 240)
SHARES = np.array([0.6, 0.3, 0.1, 0.0])
NAMES = ("common", "usual", "rare", "never")


def given(measured: tuple[int, ...] = (400, 400, 400, 0)) -> tuple[np.ndarray, np.ndarray, Ladder]:
    """Return counts, gold labels and a ladder where a label with k rows is wrong with chance 1 / sqrt(k)."""
    counts = np.array(SIZES)[:, None] * SHARES
    gold = np.repeat(np.arange(4), measured)
    rates = np.minimum(1.0, np.maximum(counts, 1e-9) ** -0.5)[:, gold]
    place = np.concatenate([(np.arange(each) + 0.5) / max(each, 1) for each in measured])
    return counts, gold, Ladder(SIZES, (place < rates)[:, None].astype(np.float32))


def test_accuracy_follows_the_count() -> None:
    counts, gold, ladder = given()
    found = cover(NAMES, counts, gold, ladder, 0.9)
    assert [each.label for each in found.labels] == ["never", "rare", "usual", "common"]
    assert [each.train for each in found.labels] == [0, 24, 72, 144]
    assert found.labels[0].accuracy is None
    assert found.labels[1].accuracy == pytest.approx(1 - 24**-0.5, abs=0.01)
    assert found.correlation is not None
    assert found.correlation > 0.9
    assert found.per_doubling is not None
    assert 0.04 < found.per_doubling < 0.15
    assert found.needed == pytest.approx(100, rel=0.1)
    lacks = {each.label: lack for each, lack in found.rare()}
    assert lacks == {"never": found.needed, "rare": found.needed - 24}
    record = json.loads(json.dumps(found.to_record()))
    assert record["rare"][1] == {"label": "rare", "train": 24, "lacks": lacks["rare"]}


def test_without_a_target_a_label_shall_be_as_good_as_all_are() -> None:
    counts, gold, ladder = given()
    found = cover(NAMES, counts, gold, ladder)
    assert found.target == pytest.approx(1 - ladder.errors[-1])
    assert found.needed is not None
    assert 24 < found.needed < 144


def test_what_cannot_be_said() -> None:
    counts, gold, ladder = given()
    far = cover(NAMES, counts, gold, ladder, 0.9999)
    assert (far.needed, far.usual) == (None, 48)
    # By what the median label has.
    assert [(each.label, lack) for each, lack in far.rare()] == [("never", 48)]
    alike = cover(("a",), np.full((4, 1), 8.0), np.zeros(1200, int), ladder)
    assert (alike.per_doubling, alike.correlation, alike.needed) == (None, None, None)
    none = cover(("a",), np.zeros((4, 1)), np.zeros(1200, int), ladder)
    assert (none.per_doubling, none.needed) == (None, None)
    right = Ladder(SIZES, np.zeros_like(ladder.wrong))
    perfect = cover(NAMES, counts, gold, right, 0.9)
    assert (perfect.per_doubling, perfect.correlation, perfect.needed) == (0.0, None, 1)


def made(**fields: object) -> str:
    return json.dumps(fields)


def test_fields_of_answers_are_counted_and_measured() -> None:
    train = [
        *[made(time="9", date="mon")] * 30,
        *[made(time="9")] * 70,
        made(date="tue", who="me"),
        "not JSON",
        "[1]",
        "{}",
    ]
    gold = [made(time="9"), made(time="8", date="mon"), made(date="tue"), made(who="me"), made(where="here"), "{}"]
    answers = [made(time="9"), made(time="9", date="mon"), made(date="tue"), made(), made(odd=1), "{}"]
    found = cover_fields(train, gold, answers)
    by_name = {each.label: each for each in found.labels}
    assert {name: (each.train, each.measured, each.accuracy) for name, each in by_name.items()} == {
        "where": (0, 1, 0.0),
        "who": (1, 1, 0.0),
        "date": (31, 2, 1.0),
        "time": (100, 2, 0.5),
    }
    assert [each.label for each in found.labels] == ["where", "who", "date", "time"]
    assert found.target == pytest.approx(2 * 3 / (6 + 5))  # over all pairs, "odd" among those that are wrong
    assert found.usual == 16
    goal = found.usual if found.needed is None else found.needed
    assert {each.label: lack for each, lack in found.rare()} == {"where": goal, "who": goal - 1}
    assert cover_fields(train, gold, answers, 0.7).target == 0.7


def test_f1_follows_the_count_of_a_field() -> None:
    counts = {"a": 4, "b": 16, "c": 64, "d": 256}
    right = {"a": 2, "b": 5, "c": 8, "d": 9}
    train = [made(**{name: 1}) for name, count in counts.items() for _ in range(count)]
    gold = [made(**{name: 1}) for name in counts for _ in range(10)]
    answers = [made(**{name: 1 if place < right[name] else 2}) for name in counts for place in range(10)]
    found = cover_fields(train, gold, answers, 0.7)
    assert found.correlation is not None
    assert found.correlation > 0.9
    assert found.needed is not None
    assert 20 < found.needed < 64
    rare = [each.label for each, _ in found.rare()]
    assert rare[0] == "a"
    assert "d" not in rare


def test_a_field_that_is_never_measured_has_no_f1() -> None:
    found = cover_fields([made(a=1), made(b=1)], [made(a=1)], [made(b=1)])
    assert [(each.label, each.accuracy) for each in found.labels] == [("a", 0.0), ("b", None)]
    assert found.target == 0.0
    with pytest.raises(DataError, match="no completion of the training rows"):
        cover_fields(["yes", "{}"], [made(a=1)], [made(a=1)])
    empty = cover_fields([made(a=1)], ["{}"], ["{}"])
    assert (empty.target, empty.labels[0].accuracy, empty.needed) == (0.0, None, None)
