"""The sample data under recipes/: well formed, honestly split, and consistent with its own rules."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "recipes" / "data"
SPLITS = ("train", "validation", "test")
LABELS = {
    "support-intent": {
        "account_access",
        "billing_question",
        "cancel_order",
        "change_address",
        "order_status",
        "product_question",
        "refund_request",
        "technical_problem",
    },
    "support-tone": {"angry", "calm", "delighted", "frustrated"},
}
TEXT_FIELD = {"support-intent": "text", "support-tone": "text", "order-fields": "prompt"}
PAIRS = {"help-search": "text", "reply-style": "prompt"}
MINIMUM = {"support-intent": 400, "support-tone": 320, "order-fields": 360}
ORDER_FIELDS = {"colour", "delivery_date", "item", "order_number", "quantity", "size"}
SHARES = {"train": (0.6, 0.7), "validation": (0.12, 0.18), "test": (0.17, 0.23)}
MAX_OVERLAP = 0.8

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def number_words(number: int) -> set[str]:
    """Return the ways English writes `number` (below 1100) in words, words parted by spaces."""
    if number < 20:
        words = {UNITS[number]}
    elif number < 100:
        tens, unit = divmod(number, 10)
        words = {TENS[tens - 2] + (f" {UNITS[unit]}" if unit else "")}
    elif number < 1000:
        hundreds, rest = divmod(number, 100)
        heads = {f"{UNITS[hundreds]} hundred"} | ({"a hundred"} if hundreds == 1 else set())
        tails = {f" and {tail}" for tail in number_words(rest)} if rest else {""}
        words = {head + tail for head in heads for tail in tails}
    else:
        words = {"one thousand", "a thousand"} if number == 1000 else set()
    return words | {6: {"half a dozen"}, 12: {"a dozen"}}.get(number, set())


def words_of(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def overlap(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets of words."""
    return len(first & second) / len(first | second) if first | second else 1.0


@cache
def rows(task: str, split: str) -> list[dict[str, Any]]:
    lines = (DATA / task / f"{split}.jsonl").read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == "", "the file ends with a line feed"
    return [json.loads(line) for line in lines]


@cache
def texts(task: str) -> list[tuple[str, str]]:
    """Return (split, text) of every row of a task."""
    return [(split, row[(TEXT_FIELD | PAIRS)[task]]) for split in SPLITS for row in rows(task, split)]


@pytest.mark.parametrize("task", TEXT_FIELD)
def test_rows_have_exactly_the_fields_of_their_kind(task: str) -> None:
    fields = {"text", "label"} if task in LABELS else {"prompt", "completion"}
    for split in SPLITS:
        assert b"\r" not in (DATA / task / f"{split}.jsonl").read_bytes()
        for row in rows(task, split):
            assert row.keys() == fields
            assert all(isinstance(value, str) and value and value == value.strip() for value in row.values()), row


@pytest.mark.parametrize("task", TEXT_FIELD)
def test_there_are_enough_rows_in_the_stated_shares(task: str) -> None:
    counts = Counter(split for split, _ in texts(task))
    assert counts.total() >= MINIMUM[task]
    for split, (low, high) in SHARES.items():
        assert low <= counts[split] / counts.total() <= high


@pytest.mark.parametrize("task", LABELS)
def test_every_split_has_every_label_about_equally_often(task: str) -> None:
    for split in SPLITS:
        counts = Counter(row["label"] for row in rows(task, split))
        assert set(counts) == LABELS[task]
        assert max(counts.values()) <= 1.25 * min(counts.values())


@pytest.mark.parametrize("task", [*TEXT_FIELD, *PAIRS])
def test_no_text_is_given_twice(task: str) -> None:
    counts = Counter(" ".join(re.findall(r"\w+", text.lower())) for _, text in texts(task))
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("task", [*TEXT_FIELD, *PAIRS])
def test_no_text_has_a_near_twin_in_another_split(task: str) -> None:
    known = [(split, text, words_of(text)) for split, text in texts(task)]
    twins = [
        (first[1], second[1])
        for first, second in combinations(known, 2)
        if first[0] != second[0] and overlap(first[2], second[2]) >= MAX_OVERLAP
    ]
    assert twins == []


@pytest.mark.parametrize("task", TEXT_FIELD)
def test_lengths_vary(task: str) -> None:
    lengths = sorted(len(text.split()) for _, text in texts(task))
    assert lengths[0] <= 3
    assert lengths[-1] >= 25
    assert lengths[len(lengths) // 4] < lengths[3 * len(lengths) // 4]


def test_pairs_are_whole_and_few() -> None:
    for task in PAIRS:
        assert 50 <= sum(len(rows(task, split)) for split in SPLITS) <= 80
        for split in SPLITS:
            for row in rows(task, split):
                assert all(isinstance(value, str) and value and value == value.strip() for value in row.values()), row
                assert len({*row.values()}) == len(row)


def test_every_help_page_is_learnt_and_tested() -> None:
    pages = {split: Counter(row["positive"] for row in rows("help-search", split)) for split in SPLITS}
    assert set(pages["train"]) == set(pages["test"]) >= set(pages["validation"])
    assert set(pages["test"].values()) == set(pages["validation"].values()) == {1}
    assert {row["negative"] for row in rows("help-search", "train")} <= set(pages["train"])
    assert all("negative" not in row for split in ("validation", "test") for row in rows("help-search", split))


def test_preferred_replies_are_short() -> None:
    for split in SPLITS:
        for row in rows("reply-style", split):
            assert row.keys() == {"prompt", "chosen", "rejected"}
            assert len(re.findall(r"[.?](?=\s|$)", row["chosen"])) <= 3, row
            assert "!" not in row["chosen"]


def test_overlap_sees_a_twin() -> None:
    assert overlap(words_of("Where is my tent?"), words_of("where is MY tent")) == 1.0
    assert overlap(words_of("Where is my tent?"), words_of("Cancel the stove")) == 0.0


def test_completions_are_canonical_json_of_known_fields() -> None:
    seen: set[tuple[str, str]] = set()
    for split in SPLITS:
        for row in rows("order-fields", split):
            found = json.loads(row["completion"])
            assert row["completion"] == json.dumps(found, sort_keys=True, ensure_ascii=False)
            assert found.keys() <= ORDER_FIELDS, row
            seen.update({(split, name) for name in found} or {(split, "none")})
    assert seen == {(split, name) for split in SPLITS for name in ORDER_FIELDS | {"none"}}


def test_completions_say_only_what_the_message_says() -> None:
    for split in SPLITS:
        for row in rows("order-fields", split):
            found = json.loads(row["completion"])
            quantity = found.pop("quantity", None)
            for value in found.values():
                assert isinstance(value, str)
                assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", row["prompt"]), row
            if quantity is not None:
                assert type(quantity) is int
                said = " ".join(re.findall(r"\w+", row["prompt"].lower()))
                ways = {str(quantity)} | number_words(quantity)
                assert any(re.search(rf"\b{way}\b", said) for way in ways), row


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "one"), (6, "half a dozen"), (19, "nineteen"), (24, "twenty four"), (120, "a hundred and twenty")],
)
def test_number_words(number: int, words: str) -> None:
    assert words in number_words(number)
