"""Labelling functions and the helpers that make them, as a user's file sees them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.data.example import Example
from adapterhub.errors import UsageError
from adapterhub.labeling import ABSTAIN, dictionary, keywords, labeling_function, length, model, nearest, pattern
from adapterhub.labeling.functions import Abstain, LabelingFunction, ModelFunction
from adapterhub.labeling.run import Failure, check_vote


def say(text: str) -> Example:
    return Example("1", {"text": text})


def votes(function: Any, *texts: str) -> list[Any]:
    return [function(say(text)) for text in texts]


class FakeModels:
    """Answers by the first letter; features are two letters' counts."""

    def identity(self, kind: str, name: str) -> str:
        return f"{kind} {name}"

    def predict(self, ref: str, texts: Sequence[str]) -> list[tuple[str, float]]:
        return [(text[0], 0.9 if text[0] == "a" else 0.4) for text in texts]

    def features(self, base: str, texts: Sequence[str]) -> np.ndarray:
        return np.array([[text.count("a"), text.count("b")] for text in texts], dtype=np.float32)


def test_importing_them_loads_nothing_heavy() -> None:
    code = "import sys, adapterhub.labeling as l; l.keywords('a', ['b']); print([m for m in %r if m in sys.modules])"
    heavy = ("numpy", "torch", "pydantic", "sklearn")
    done = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_abstain_is_one_readable_and_false() -> None:
    assert repr(ABSTAIN) == "ABSTAIN"
    assert not ABSTAIN
    assert Abstain() is ABSTAIN
    assert pickle.loads(pickle.dumps(ABSTAIN)) is ABSTAIN


def test_the_decorator_bare_and_with_a_name() -> None:
    @labeling_function
    def one(example: Example) -> str:
        return example.text

    @labeling_function(name="second one")
    def two(example: Example) -> str:
        return "b"

    assert (one.name, two.name) == ("one", "second one")
    assert one(say("x")) == "x"
    with pytest.raises(UsageError, match="stands on 3"):
        labeling_function(3)  # type: ignore[call-overload]


def test_keywords_are_whole_words_or_phrases() -> None:
    function = keywords("angry", ["no way", "liar", "$5"])
    assert votes(function, "NO WAY!", "liars", "a liar.", "only $5") == ["angry", ABSTAIN, "angry", "angry"]
    both = keywords("angry", ["no way", "liar"], least=2)
    assert votes(both, "liar, liar", "no way, liar") == [ABSTAIN, "angry"]
    assert votes(keywords("x", ["US"], case=True), "us", "US") == [ABSTAIN, "x"]


def test_pattern_ignores_case_unless_told() -> None:
    assert votes(pattern("x", "h.llo"), "Hello", "hi") == ["x", ABSTAIN]
    assert votes(pattern("x", "hello", flags=0), "Hello") == [ABSTAIN]


def test_dictionary_takes_the_most_frequent_meaning() -> None:
    function = dictionary({"joy": "good", "fun": "good", "sad": "bad"})
    assert votes(function, "joy and fun, sad", "joy, sad", "none") == ["good", ABSTAIN, ABSTAIN]
    assert votes(dictionary({"in": "x"}), "\u0131n", "IN") == [ABSTAIN, "x"]  # a dotless i matches, and is no i
    assert votes(dictionary({"US": "x"}, case=True), "us", "US") == [ABSTAIN, "x"]


@settings(deadline=None)
@given(st.text(), st.integers(0, 5), st.integers(0, 5))
def test_length(text: str, least: int, most: int) -> None:
    size = len(text.split())
    assert length("x", least=least, most=most)(say(text)) is ("x" if least <= size <= most else ABSTAIN)
    assert length("x", most=most, unit="characters")(say(text)) is ("x" if len(text) <= most else ABSTAIN)


def test_another_model_as_a_callable() -> None:
    sure = model(lambda text: (text[0], 0.8), least=0.5, labels={"a": "alpha"})
    assert isinstance(sure, LabelingFunction)
    assert votes(sure, "a", "b") == ["alpha", ABSTAIN]
    assert votes(model(lambda text: (text, 0.4), least=0.5), "a") == [ABSTAIN]
    assert votes(model(lambda text: text), "a") == ["a"]
    assert votes(model(lambda text: ABSTAIN), "a") == [ABSTAIN]


def test_another_model_by_its_ref() -> None:
    function = model("tone@3", least=0.5, name="tone")
    assert isinstance(function, ModelFunction)
    assert (function.kind, function.model) == ("ref", "tone@3")
    assert function.ask(FakeModels(), ["a b", "b a"]) == ["a", ABSTAIN]


def test_nearest_neighbours() -> None:
    function = nearest([("aaa", "A"), ("aab", "A"), ("bbb", "B")], base="mini", count=2, cosine=0.5)
    assert (function.kind, function.model) == ("base", "mini")
    assert function.ask(FakeModels(), ["aaaa", "bb", "ab", ""]) == ["A", "B", "A", ABSTAIN]
    tied = nearest([("a", "A"), ("a", "B")], count=2)
    assert tied.ask(FakeModels(), ["a"]) == [ABSTAIN]
    split = nearest([("a", "A"), ("a", "A"), ("a", "B"), ("a", "C")], count=4, share=0.6)
    assert split.ask(FakeModels(), ["a"]) == [ABSTAIN]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: keywords("x", "abc"), "one text"),
        (lambda: keywords("x", []), "one word or more"),
        (lambda: keywords("x", ["a", " "]), "none of them empty"),
        (lambda: keywords("x", ["a"], least=0), "least is 0"),
        (lambda: pattern("x", "("), "no(t)? a regular expression"),
        (lambda: length("x"), "give least"),
        (lambda: length("x", least=1, unit="tokens"), "'tokens'"),
        (lambda: nearest([]), "no labelled rows"),
        (lambda: nearest([("a", "b")], count=0), "count is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        make()


def test_what_is_a_vote() -> None:
    assert check_vote("a b") == "a b"
    assert check_vote(ABSTAIN) is None
    for wrong in (None, 1, True, "", " a", "a\n", ["a"]):
        assert isinstance(check_vote(wrong), Failure)
    assert "return" in check_vote(None).message  # type: ignore[union-attr]
