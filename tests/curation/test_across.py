"""Leaks between splits: what is alike is found, once, and what is not is not."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.curation import across
from adapterhub.curation.across import near_pairs, normalised_pairs
from adapterhub.curation.near import jaccard, pieces

LONG = "Where can I see how much of the delivery fee was refunded to my card"


def test_equal_but_for_case_and_punctuation() -> None:
    assert normalised_pairs(["a b", "A B", "c"], ["a, b!", "d"]) == [("a, b!", "a b")]


def test_nearly_the_same() -> None:
    first = ["something else", LONG, LONG + " now"]
    assert list(near_pairs(first, [LONG + "s", "nothing like it", "else"])) == [(LONG + "s", LONG)]
    assert list(near_pairs([], [LONG])) == list(near_pairs([LONG], [])) == []


def test_all_that_are_near_are_found_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    words = ["".join(chr(97 + each) for each in draw.integers(0, 26, 5)) for _ in range(60)]
    first = [" ".join(words[at] for at in draw.integers(0, 60, 12)) for _ in range(80)]
    second = [text.replace("a", "o", int(draw.integers(0, 3))) + "x" for text in first]
    near = {(b, a) for b in second for a in first if jaccard(pieces(a), pieces(b)) >= across.LEAST}
    found = list(near_pairs(first, second))
    assert set(found) <= near
    assert len(found) >= 0.95 * len({b for b, _ in near})
    assert 0 < len(found) < len(second)
    monkeypatch.setattr(across, "MOST_TEXTS", 100)
    assert list(near_pairs(first, second)) == []
