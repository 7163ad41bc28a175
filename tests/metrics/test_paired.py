from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.metrics import McNemar, differences, evaluate, is_right, mcnemar
from adapterhub.metrics.paired import paired_bound
from adapterhub.metrics.scores import Kind, resamples

labels = st.sampled_from("abc")
rows = st.lists(st.tuples(labels, labels, labels | st.none()), min_size=1, max_size=30)


def split(found: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(each) for each in zip(*found, strict=True)]


@given(rows)
def test_a_difference_is_that_of_the_metrics_and_lies_in_its_interval(found: list[tuple[Any, ...]]) -> None:
    gold, one, other = split(found)
    a, b = (evaluate("classification", gold, each, "abc") for each in (one, other))
    for name, difference in differences("classification", gold, one, other, "abc").items():
        assert difference.value == pytest.approx(b[name].value - a[name].value)
        assert difference.low <= difference.value <= difference.high
        assert difference.least <= difference.value


@given(rows)
def test_the_other_way_round_changes_the_sign(found: list[tuple[Any, ...]]) -> None:
    gold, one, other = split(found)
    there, back = (differences("classification", gold, *pair, "abc") for pair in ((one, other), (other, one)))
    for name, difference in there.items():
        assert (back[name].value, back[name].low, back[name].high) == pytest.approx(
            (-difference.value, -difference.high, -difference.low)
        )


@pytest.mark.parametrize(
    ("kind", "gold", "one", "other"),
    [
        ("classification", list("aabbc") * 4, list("aabcc") * 4, list("abbbc") * 4),
        (
            "multilabel",
            [("a",), ("a", "b"), (), ("c",)] * 5,
            [("a",), ("a",), ("b",), ()] * 5,
            [("a",), ("b",), (), ("c",)] * 5,
        ),
        (
            "generation",
            ['{"a": 1}', '{"b": 2, "c": 3}', "{}"] * 6,
            ['{"a": 1}', '{"b": 2}', "no"] * 6,
            ['{"a": 2}', '{"c": 3, "b": 2}', "{}"] * 6,
        ),
    ],
)
def test_an_interval_is_that_of_metrics_computed_anew_on_each_resample(
    kind: Kind, gold: list[Any], one: list[Any], other: list[Any]
) -> None:
    names = "abc" if kind != "generation" else ""
    found = differences(kind, gold, one, other, names)
    assert found.keys() == evaluate(kind, gold, one, names).keys()
    drawn = np.concatenate(list(resamples(len(gold)))).astype(int)[:40]
    slow: dict[str, list[float]] = {name: [] for name in found}
    for counts in drawn:
        index = [row for row, count in enumerate(counts) for _ in range(count)]
        parts = [[each[row] for row in index] for each in (gold, one, other)]
        a, b = (evaluate(kind, parts[0], each, names) for each in parts[1:])
        for name in slow:
            slow[name].append(b[name].value - a[name].value)
    from adapterhub.metrics.paired import _boots

    fast = {name: (b - a)[:40] for name, (a, b) in _boots(kind, gold, one, other, names)}
    for name, values in slow.items():
        assert fast[name] == pytest.approx(np.array(values)), name


def test_the_least_is_what_a_one_sided_test_compares_with_the_margin() -> None:
    draw = random.Random(1)
    gold = ["a"] * 400
    one = [draw.choice("aaab") for _ in gold]
    same = differences("classification", gold, one, one)["accuracy"]
    assert same.value == 0
    assert -0.01 < same.least <= 0
    worse = ["b" if row % 10 == 0 else answer for row, answer in enumerate(one)]
    found = differences("classification", gold, one, worse)["accuracy"]
    assert -0.12 < found.low < found.least < found.value < 0


def test_mcnemar_is_the_exact_binomial_test_of_the_rows_that_differ() -> None:
    one = [True] * 10 + [True] * 2 + [False] * 9 + [False] * 5
    other = [True] * 10 + [False] * 2 + [True] * 9 + [False] * 5
    found = mcnemar(one, other)
    tail = sum(math.comb(11, k) for k in range(3)) / 2**11
    assert found == McNemar(9, 2, pytest.approx(2 * tail))
    assert mcnemar(one, one) == McNemar(0, 0, 1.0)
    assert mcnemar([True], [False]).p == 1.0


def test_right_is_right_for_each_kind() -> None:
    assert is_right("classification", "a", "a")
    assert not is_right("classification", "a", None)
    assert is_right("multilabel", ("b", "a"), ("a", "b"))
    assert not is_right("multilabel", ("a",), ("a", "b"))
    assert is_right("generation", '{"a": 1, "b": 2}', json.dumps({"b": 2, "a": 1}))
    assert not is_right("generation", "yes", None)


def test_rows_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="as many"):
        differences("classification", ["a"], ["a"], [])
    with pytest.raises(ValueError, match="some"):
        mcnemar([], [])


def test_free_text_is_compared_too() -> None:
    found = differences("generation", ["yes", "no"] * 20, ["yes", "yes"] * 20, ["yes", "no"] * 20)
    assert list(found) == ["exact_match"]
    assert found["exact_match"].value == 0.5


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_few_rows_show_little_even_where_none_was_lost(rows: int) -> None:
    assert paired_bound([True] * rows, [True] * rows) < -1.2 / (rows + 1)
    assert paired_bound([True] * 1000, [True] * 1000) > -0.003


def test_the_bound_is_below_the_true_difference_nineteen_times_in_twenty() -> None:
    draw = random.Random(0)
    below = 0
    for _ in range(600):
        one = [draw.random() < 0.85 for _ in range(120)]
        other = [right if draw.random() < 0.9 else draw.random() < 0.6 for right in one]
        # Nine in ten as before, else 0.6: 0.9 * 0.85 + 0.1 * 0.6 - 0.85.
        below += paired_bound(one, other) <= -0.025
    assert below / 600 > 0.92
