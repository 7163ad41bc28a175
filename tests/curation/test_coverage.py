"""Coverage of labels: how accuracy follows the count, and which labels have too few rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adapterhub.curation.coverage import cover
from adapterhub.curation.ladder import Ladder

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
