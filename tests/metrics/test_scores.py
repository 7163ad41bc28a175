from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.metrics import (
    Metric,
    accuracy,
    auroc,
    calibration_error,
    evaluate,
    exact_match,
    field_f1,
    macro_f1,
    multilabel_f1,
    rank_correlation,
    ranks,
    rejection_recall,
    retrieval,
    scores,
)

labels = st.sampled_from("abcd")
answers = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)
label_sets = st.frozensets(labels)
shares = st.sampled_from([0.0, 1 / 15, 0.2, 1 / 3, 0.4, 0.5, 0.9, 1.0]) | st.floats(0, 1)
set_answers = st.lists(st.tuples(label_sets, label_sets), min_size=1, max_size=40)


def slow_f1(gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]]) -> tuple[float, float]:
    """Micro and macro F1 by their definitions, from precision and recall."""

    def f1(names: Collection[str]) -> float:
        pairs = [(name in want, name in got) for want, got in zip(gold, predicted, strict=True) for name in names]
        hits = sum(want and got for want, got in pairs)
        precision = hits / max(1, sum(got for _, got in pairs))
        recall = hits / max(1, sum(want for want, _ in pairs))
        return 2 * precision * recall / (precision + recall) if hits else 0.0

    names = {name for row in (*gold, *predicted) for name in row}
    return (f1(names), sum(f1([name]) for name in names) / len(names)) if names else (1.0, 1.0)


def slow_error(sure: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error, a bin after the other."""
    total = 0.0
    for number in range(15):
        # As the fast one: which bin a value on a border falls into is what floating point makes of 15 times it.
        rows = [row for row, value in enumerate(sure) if min(max(math.ceil(value * 15) - 1, 0), 14) == number]
        if rows:
            confidence = sum(sure[row] for row in rows) / len(rows)
            accuracy = sum(right[row] for row in rows) / len(rows)
            total += len(rows) / len(sure) * abs(confidence - accuracy)
    return total


def slow_auroc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The share of pairs that are in order."""
    return sum((a > b) + (a == b) / 2 for a in higher for b in lower) / (len(higher) * len(lower))


def holds(metric: Metric) -> bool:
    return 0 <= metric.low <= metric.value <= metric.high <= 1


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 9))
def test_ranks_are_counted_one_by_one(seed: int, rows: int, texts: int) -> None:
    dice = np.random.default_rng(seed)
    queries, pool = dice.integers(-2, 3, (rows, 3)).astype(float), dice.integers(-2, 3, (texts, 3)).astype(float)
    own = dice.integers(texts, size=rows).tolist()
    right = [{each, *dice.integers(texts, size=1).tolist()} for each in own]
    slow = [
        1 + sum(query @ pool[t] >= query @ pool[mine] for t in range(texts) if t not in also)
        for query, mine, also in zip(queries, own, right, strict=True)
    ]
    assert ranks(queries, pool, own, right) == slow


def test_ranks_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(0)
    queries, pool = dice.normal(size=(20, 4)), dice.normal(size=(9, 4))
    own = dice.integers(9, size=20).tolist()
    whole = ranks(queries, pool, own, [{each} for each in own])
    monkeypatch.setattr(scores, "_CHUNK_CELLS", 20)
    assert ranks(queries, pool, own, [{each} for each in own]) == whole


def test_retrieval_of_a_worked_example() -> None:
    found = retrieval([1, 2, 1, 10, 5])
    assert found["recall_at_1"].value == 2 / 5
    assert found["recall_at_5"].value == 4 / 5
    assert found["mrr"].value == pytest.approx((1 + 0.5 + 1 + 0.1 + 0.2) / 5)
    assert all(holds(metric) for metric in found.values())
    assert retrieval([1] * 9)["mrr"] == Metric(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no ranks"):
        retrieval([])


def test_wilson_interval_of_a_worked_example() -> None:
    # 81 of 263: (0.2553, 0.3662), Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    metric = accuracy(["x"] * 263, ["x"] * 81 + ["y"] * 182)
    assert metric.value == pytest.approx(81 / 263)
    assert metric.low == pytest.approx(0.2553, abs=5e-5)
    assert metric.high == pytest.approx(0.3662, abs=5e-5)


def test_perfect_answers_still_have_an_interval() -> None:
    metric = accuracy(["x"] * 20, ["x"] * 20)
    assert (metric.value, metric.high) == (1.0, 1.0)
    assert metric.low == pytest.approx(20 / (20 + 1.959964**2))


@given(answers)
def test_intervals_hold_their_value(rows: list[tuple[str, str]]) -> None:
    gold, predicted = zip(*rows, strict=True)
    assert all(holds(metric) for metric in evaluate("classification", gold, predicted).values())


@given(st.lists(st.tuples(shares, st.booleans()), min_size=1, max_size=40))
def test_calibration_error_is_what_its_definition_says(rows: list[tuple[float, bool]]) -> None:
    sure, right = zip(*rows, strict=True)
    found = calibration_error(sure, right)
    assert found.value == pytest.approx(slow_error(sure, right), abs=1e-12)
    assert holds(found)


def test_calibration_error_of_a_worked_example() -> None:
    # Two bins: 0.95 said and 1 of 2 right; 0.55 said and 2 of 2 right.
    found = calibration_error([0.95, 0.95, 0.55, 0.55], [True, False, True, True])
    assert found.value == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    assert calibration_error([1.0, 1.0], [True, True]).value == 0.0
    assert calibration_error([1.0, 1.0], [False, False]) == Metric(1.0, 1.0, 1.0)


@given(st.lists(shares, min_size=1, max_size=20), st.lists(shares, min_size=1, max_size=20))
def test_auroc_is_the_share_of_pairs_in_order(higher: list[float], lower: list[float]) -> None:
    found = auroc(higher, lower)
    assert found.value == pytest.approx(slow_auroc(higher, lower), abs=1e-12)
    assert holds(found)
    assert auroc(lower, higher).value == pytest.approx(1 - found.value, abs=1e-12)


def test_auroc_says_whether_all_none_or_half_are_told_apart() -> None:
    assert auroc([0.9, 0.8], [0.1, 0.2]) == Metric(1.0, 1.0, 1.0)
    assert auroc([0.1], [0.9]).value == 0.0
    assert auroc([0.5] * 3, [0.5] * 4) == Metric(0.5, 0.5, 0.5)
    for higher, lower in (([], [0.1]), ([0.1], [])):
        with pytest.raises(ValueError, match="expected some of each"):
            auroc(higher, lower)


def test_their_intervals_are_those_of_the_bootstrap() -> None:
    draw = random.Random(0)
    sure = [draw.random() for _ in range(200)]
    right = [draw.random() < value**2 for value in sure]
    higher, lower = [draw.gauss(1, 1) for _ in range(120)], [draw.gauss(0, 1) for _ in range(80)]
    pooled = [(value, True) for value in higher] + [(value, False) for value in lower]
    errors, areas = [], []
    for _ in range(400):
        rows = [draw.randrange(200) for _ in range(200)]
        errors.append(slow_error([sure[row] for row in rows], [right[row] for row in rows]))
        drawn = [pooled[row] for row in rows]
        areas.append(slow_auroc([v for v, up in drawn if up], [v for v, up in drawn if not up]))
    for metric, values in ((calibration_error(sure, right), errors), (auroc(higher, lower), areas)):
        values.sort()
        assert metric.low == pytest.approx(min(values[10], metric.value), abs=0.02)
        assert metric.high == pytest.approx(values[390], abs=0.02)


def test_no_label_is_a_wrong_answer_and_no_crash() -> None:
    gold, predicted = ["a", "b", "a", "b"], ["a", None, None, "b"]
    assert accuracy(gold, predicted).value == 0.5
    assert macro_f1(gold, predicted).value == pytest.approx(2 / 3)  # all that is said is right, half is said
    found = evaluate("classification", gold, predicted, ["a", "b"])
    assert found["macro_f1"] == macro_f1(gold, predicted)
    assert evaluate("classification", ["a"], [None])["accuracy"].value == 0.0
    assert macro_f1(["a"], [None]).value == 0.0
    assert rejection_recall([None, "a", None, None]) == accuracy(["x"] * 4, ["x", "y", "x", "x"])


@given(set_answers)
def test_f1_is_what_its_definition_says(rows: list[tuple[frozenset[str], frozenset[str]]]) -> None:
    gold, predicted = zip(*rows, strict=True)
    found = multilabel_f1(gold, predicted)
    micro, macro = slow_f1(gold, predicted)
    assert found["micro_f1"].value == pytest.approx(micro, abs=1e-6)
    assert found["macro_f1"].value == pytest.approx(macro, abs=1e-6)
    assert holds(found["micro_f1"])
    assert holds(found["macro_f1"])


@given(answers)
def test_micro_f1_of_single_labels_is_accuracy(rows: list[tuple[str, str]]) -> None:
    gold, predicted = zip(*rows, strict=True)
    micro = multilabel_f1([{label} for label in gold], [{label} for label in predicted])["micro_f1"]
    assert micro.value == pytest.approx(accuracy(gold, predicted).value, abs=1e-6)


def test_labels_nobody_used_do_not_drag_the_mean_down() -> None:
    assert macro_f1(["a", "b"], ["a", "b"], ["a", "b", "c"]).value == 1.0
    assert macro_f1(["a", "b"], ["a", "c"], ["a", "b", "c"]).value == pytest.approx(1 / 3, abs=1e-6)


def test_intervals_are_those_of_the_bootstrap() -> None:
    draw = random.Random(0)
    gold = [draw.choice("abc") for _ in range(200)]
    predicted = [label if draw.random() < 0.8 else draw.choice("abc") for label in gold]
    metric = macro_f1(gold, predicted)
    values = []
    for _ in range(2000):
        rows = [draw.randrange(200) for _ in range(200)]
        values.append(slow_f1([{gold[row]} for row in rows], [{predicted[row]} for row in rows])[1])
    values.sort()
    assert metric.low == pytest.approx(values[50], abs=0.015)
    assert metric.high == pytest.approx(values[1950], abs=0.015)
    assert metric.low < metric.value < metric.high


def test_equal_inputs_give_equal_intervals_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, predicted = list("abcabcabca") * 3, list("abcabbabca") * 3
    whole = macro_f1(gold, predicted)
    assert macro_f1(gold, predicted) == whole
    monkeypatch.setattr(scores, "_CHUNK_CELLS", 30 * 7)
    assert macro_f1(gold, predicted) == whole


@pytest.mark.parametrize(
    ("gold", "predicted", "right"),
    [
        ("yes", " yes\n", True),
        ("yes", "Yes", False),
        ('{"a": 1, "b": [2]}', '{"b":[2.0],"a":1}', True),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": 1}', '{"a": 1', False),
        ("[1, 2]", "[2, 1]", False),
        ("1", "1.0", False),  # a bare number is a text like any other
        ("null", "nothing", False),
        ("", "", True),
        ("a", None, False),
    ],
)
def test_exact_match(gold: str, predicted: Any, right: bool) -> None:
    assert exact_match([gold], [predicted]).value == right


def test_field_f1_counts_fields_with_their_values() -> None:
    gold = ['{"date": "9th", "time": "10pm"}', "{}", '{"people": 2}']
    predicted = ['{"date": "9th", "time": "9pm"}', '{"people": 3}', "two people"]
    # One hit among 3 gold and 3 predicted pairs.
    assert field_f1(gold, predicted).value == pytest.approx(2 / 6)
    assert field_f1(gold, gold) == Metric(1.0, 1.0, 1.0)
    assert field_f1(["{}"], ["{}"]).value == 1.0


def test_each_kind_has_its_metrics() -> None:
    assert set(evaluate("classification", ["a"], ["a"], ["a", "b"])) == {"accuracy", "macro_f1"}
    assert set(evaluate("multilabel", [["a"]], [()], ["a", "b"])) == {"micro_f1", "macro_f1"}
    assert set(evaluate("generation", ["{}", '{"a": 1}'], ["x", "y"])) == {"exact_match", "field_f1"}
    assert set(evaluate("generation", ["{}", "[1]"], ["x", "y"])) == {"exact_match"}


def test_records() -> None:
    assert Metric(0.5, 0.25, 0.75).to_record() == {"value": 0.5, "low": 0.25, "high": 0.75}


@pytest.mark.parametrize("kind", ["classification", "multilabel", "generation"])
def test_there_must_be_as_many_predictions_as_gold_answers(kind: Any) -> None:
    for gold, predicted in (([], []), (["a"], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="predictions"):
            evaluate(kind, gold, predicted)


def test_large_tables_take_little_time_and_memory() -> None:
    draw = random.Random(0)
    names = [f"label{n}" for n in range(150)]
    gold = [draw.choice(names) for _ in range(5000)]
    assert macro_f1(gold, gold, names) == Metric(1.0, 1.0, 1.0)


def test_f1_is_as_exact_as_a_number_can_be() -> None:
    assert macro_f1(["a", "a", "b"], ["a", "b", "b"]).value == pytest.approx(2 / 3, abs=1e-15)
    assert field_f1(['{"a": 1, "b": 2}'], ['{"a": 1}']).value == pytest.approx(2 / 3, abs=1e-15)


def test_an_empty_object_must_be_written_to_be_right() -> None:
    assert field_f1(["{}"], ["{}"]).value == 1.0
    assert field_f1(["{}"], ["no json"]).value == 0.0
    assert field_f1(["{}", '{"a": 1}'], ["no json", '{"a": 1}']).value == pytest.approx(2 / 3)
    # Where gold has pairs they are missed, which is counted already.
    assert field_f1(['{"a": 1}', '{"a": 1}'], ["no json", '{"a": 1}']).value == pytest.approx(2 / 3)


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) where no values are equal: d = 0, 1, -1, 0.
    assert rank_correlation([1, 2, 3, 4], [5, 7, 6, 8]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # Equal values share the mean of their ranks.
    assert rank_correlation([1, 1, 2], [1, 1, 2]) == pytest.approx(1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0
    with pytest.raises(ValueError, match="beside"):
        rank_correlation([1, 2], [1, 2, 3])
