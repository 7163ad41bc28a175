"""What the classes of rows weigh, and what cannot be learnt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import ConfigError, DataError
from adapterhub.training.answers import check_contrast, class_factors

LABELS = ("a", "b", "c")
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def test_balanced_weights_are_n_over_k_times_n_c() -> None:
    # 3 of a, 1 of b, none of c: two labels are given.
    assert class_factors([RED, RED, RED, BLUE], "balanced", LABELS) == pytest.approx([4 / 6, 4 / 6, 4 / 6, 4 / 2])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_balanced_rows_weigh_as_much_as_before_and_each_label_the_same(labels: list[int]) -> None:
    targets = [tuple(float(each == index) for index in range(3)) for each in labels]
    factors = class_factors(targets, "balanced", LABELS)
    assert sum(factors) == pytest.approx(len(labels))
    by_label = [sum(f for f, each in zip(factors, labels, strict=True) if each == label) for label in set(labels)]
    assert by_label == pytest.approx([by_label[0]] * len(by_label))


def test_probabilities_count_as_parts_and_several_labels_by_their_mean() -> None:
    weights = {"a": 3.0, "b": 0.5}
    assert class_factors([(0.5, 0.5, 0.0), (0.0, 0.0, 1.0)], weights, LABELS) == pytest.approx([1.75, 1.0])
    multilabel = [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)]
    assert class_factors(multilabel, weights, LABELS) == pytest.approx([1.75, 1.0, 2.0])
    # a: 2 of 5 given labels, b: 1, c: 2.
    parts = [5 / 6, 5 / 3, 5 / 6]
    assert class_factors([*multilabel, (0.0, 0.0, 1.0)], "balanced", LABELS) == pytest.approx(
        [(parts[0] + parts[1]) / 2, 1.0, (parts[0] + parts[2]) / 2, parts[2]]
    )


def test_a_weight_of_no_label_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"training\.class_weights names 'd', which is no label; the labels are a, b, c"
    ):
        class_factors([RED], {"d": 1.0}, LABELS)


def test_one_positive_is_nothing_to_tell_apart() -> None:
    with pytest.raises(DataError, match="all training rows have the same positive, 'x'"):
        check_contrast(["x", "x"])
    check_contrast(["x", "y", "x"])
    check_contrast([])
