"""Duplicates: what is found, which one stays, and what is said when they do not agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.curation.duplicates import Rules, find_duplicates, reasons_of
from adapterhub.curation.likes import Found, normalise, shared_groups
from adapterhub.curation.near import band_shape, pieces
from adapterhub.curation.rows import Rows
from tests.curation.making import rows_of, write

LONG = "Where can I see how much of the delivery fee was refunded to my card"


def found_in(folder: Path, rows: list[dict[str, Any]], rules: Rules = Rules(), **options: Any) -> Found:  # noqa: B008
    return find_duplicates(rows_of(folder, rows), rules, **options)


def kept_for(found: Found) -> dict[int, tuple[int, str]]:
    return {row: (each.kept, each.reason) for row, each in found.dropped.items()}


def test_levels(tmp_path: Path) -> None:
    rows = [
        {"text": LONG, "label": "a"},
        {"text": "something else"},
        {"text": LONG, "label": "a", "id": 7},
        {"text": LONG.upper() + " ?!", "label": "a"},
        {"text": LONG.replace("card", "cart")},
    ]
    found = found_in(tmp_path, rows)
    assert kept_for(found) == {2: (0, "exact"), 3: (0, "normalised"), 4: (0, "near")}
    assert 0.85 <= found.dropped[4].similarity < 1
    assert found.counts() == {"exact": 1, "normalised": 1, "near": 1}
    assert not found.conflicts
    assert kept_for(found_in(tmp_path, rows, Rules(near=None))) == {2: (0, "exact"), 3: (0, "normalised")}
    assert kept_for(found_in(tmp_path, rows, Rules(normalised=False, near=None))) == {2: (0, "exact")}
    assert 4 not in found_in(tmp_path, rows, Rules(near=0.99)).dropped


def test_the_best_labelled_stays(tmp_path: Path) -> None:
    soft = {"text": "t", "probs": {"a": 1.0}}
    rows = [{"text": "t"}, soft, {"text": "t", "label": "a"}, {"text": "t", "label": "a", "weight": 3}, soft]
    assert {each.kept for each in found_in(tmp_path, rows).dropped.values()} == {3}
    assert {each.kept for each in found_in(tmp_path, rows[:2]).dropped.values()} == {1}
    assert {each.kept for each in found_in(tmp_path, [soft, soft]).dropped.values()} == {0}


def test_the_same_text_with_another_label_is_a_conflict(tmp_path: Path) -> None:
    rows = [{"text": "t", "label": "a"}, {"text": " t ", "label": "b"}, {"text": "T!", "label": "b"}, {"text": "T"}]
    found = found_in(tmp_path, rows)
    # The same text: one must go. Alike only: the difference may be what the labels are about, so both stay.
    assert kept_for(found) == {1: (0, "exact"), 3: (0, "normalised")}
    assert found.dropped[1].conflict
    assert not found.dropped[3].conflict
    assert found.conflicts == {(0, 1): "exact", (0, 2): "normalised"}


def test_near_rows_with_other_labels_stay(tmp_path: Path) -> None:
    rows = [{"text": LONG, "label": "a"}, {"text": LONG + "s", "label": "b"}, {"text": LONG + "sz", "label": "b"}]
    found = found_in(tmp_path, rows)
    assert kept_for(found) == {2: (1, "near")}  # its likest has its label, and one with another is no reason to stay
    assert found.conflicts[0, 1] == "near"


def test_rows_of_another_file_stay_and_what_is_in_them_goes(tmp_path: Path) -> None:
    held = write(tmp_path / "test.jsonl", [{"text": LONG}, {"text": LONG}, {"text": "b", "label": "y"}])
    own = [{"text": LONG + "!", "label": "x"}, {"text": "b", "label": "z"}, {"text": "n"}]
    rows = Rows.read([held, write(tmp_path / "train.jsonl", own)])
    found = find_duplicates(rows, held=3)
    assert kept_for(found) == {3: (0, "normalised"), 4: (2, "exact")}
    reasons = reasons_of(found, rows, lambda row: "test" if row < 3 else "train")
    assert reasons[3] == {"reason": "normalised", "kept_id": rows.id(0), "kept_in": "test"}
    assert reasons[4]["conflict"] is True


def test_rows_alike_to_one_that_went_are_not_chained(tmp_path: Path) -> None:
    # Each is near the one before it; the last is far from the first, so it stays.
    texts = [LONG]
    for place in range(0, 40, 4):
        texts.append(texts[-1][:place] + "#" * 4 + texts[-1][place + 4 :].replace("#", "q"))
    rows = rows_of(tmp_path, [{"text": text} for text in texts])
    found = find_duplicates(rows, Rules(near=0.8))
    for each in found.dropped.values():
        assert each.kept not in found.dropped
        mine, other = pieces(rows.text(each.row)), pieces(rows.text(each.kept))
        assert len(mine & other) / len(mine | other) == pytest.approx(each.similarity)
        assert each.similarity >= 0.8


def test_features_that_point_the_same_way(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(6)])
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(2, 8)).astype(np.float32)
    features = np.stack([one, 2 * one, one, other, one + 0.01, np.zeros(8, np.float32)])
    found = find_duplicates(rows, Rules(near=None, features=0.95), features=features)
    assert kept_for(found) == {2: (0, "features"), 4: (0, "features")}
    assert found.conflicts == {(0, 1): "features"}
    reasons = reasons_of(found, rows, lambda _: "rows")
    assert reasons[2]["similarity"] == pytest.approx(1, abs=1e-3)
    single = rows_of(tmp_path, [{"text": "t"}])
    assert not find_duplicates(single, Rules(features=0.9), features=features[:1]).dropped


def test_clusters_find_what_one_cluster_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    features = draw.normal(size=(300, 8)).astype(np.float32)
    features[200:] = features[:100] + 0.01 * draw.normal(size=(100, 8)).astype(np.float32)
    rows = rows_of(tmp_path, [{"text": f"row {n:03}"} for n in range(300)])
    rules = Rules(near=None, features=0.99)
    whole = find_duplicates(rows, rules, features=features).dropped
    assert set(whole) == set(range(200, 300))
    monkeypatch.setattr("adapterhub.curation.similar._CLUSTER", 100)
    monkeypatch.setattr("adapterhub.curation.similar._BLOCK", 7)
    parted = find_duplicates(rows, rules, features=features).dropped
    assert set(parted) <= set(whole)
    assert len(parted) > 80


def test_many_letters_from_one_template_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.curation.likes._MOST_TRIED", 2)
    rows = [{"text": f"Your parcel number {n * 7919:08} is on its way to you"} for n in range(60)]
    assert not found_in(tmp_path, rows, Rules(near=0.95)).dropped


def test_no_rows_left_to_compare(tmp_path: Path) -> None:
    assert len(found_in(tmp_path, [{"text": "."}, {"text": "."}]).dropped) == 1


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The twin  CITIES?", "the twin cities"),
        ("\uff26\uff55\uff4c\uff4c", "full"),
        ("?!", "?!"),
        ("Straße", "strasse"),
        ("हिन्दी!", "हिन्दी"),
    ],
)
def test_normalised(text: str, plain: str) -> None:
    assert normalise(text) == plain


@given(st.lists(st.integers(0, 5)))
def test_shared_groups(values: list[int]) -> None:
    found = [group.tolist() for group in shared_groups(np.array(values, np.uint64))]
    expected = [[at for at, each in enumerate(values) if each == value] for value in sorted(set(values))]
    assert found == [group for group in expected if len(group) > 1]


def test_bands_are_wider_for_likelier_pairs() -> None:
    shapes = [band_shape(least) for least in (0.3, 0.5, 0.8, 0.95, 1.0)]
    assert [width for _, width in shapes] == sorted(width for _, width in shapes)
    assert all(bands * width <= 128 for bands, width in shapes)
    assert band_shape(0.001) == (128, 1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["alpha beta gamma delta", "alpha beta gamma delt", "Alpha beta, gamma delta", "z"])))
def test_whatever_goes_has_its_like_among_those_that_stay(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    texts = ["first", *texts]
    found = find_duplicates(rows_of(tmp_path_factory.mktemp("rows"), [{"text": text} for text in texts]))
    stay = set(range(len(texts))) - set(found.dropped)
    assert all(each.kept in stay for each in found.dropped.values())
    assert len({normalise(texts[row]) for row in stay}) == len(stay)
