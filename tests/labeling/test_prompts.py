"""Prompts as voters: the file, and how scores of words become votes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import ConfigError, FileMissing
from adapterhub.labeling.prompts import AdapterVoter, EndpointVoter, PromptVoter, named_first, read_voters, votes_of

WORDS = {"good": (" good", " great"), "bad": (" bad",)}


def voter(**changes: object) -> PromptVoter:
    return PromptVoter.model_validate({"name": "v", "prompt": "{text} It was", "words": WORDS, **changes})


def logs(rows: list[list[float]]) -> np.ndarray:
    return np.log(np.array(rows))


def test_words_of_a_label_add_up() -> None:
    said, probs = votes_of(voter(calibration="none"), logs([[0.2, 0.2, 0.3], [0.1, 0.1, 0.3]]), None)
    assert said == ["good", "bad"]
    assert np.allclose(probs, [[4 / 7, 3 / 7], [0.4, 0.6]])


def test_what_is_said_without_content_is_taken_off() -> None:
    scores = logs([[0.3, 0.3, 0.3], [0.4, 0.4, 0.1]])
    said, _ = votes_of(voter(calibration="content-free"), scores, logs([[0.4, 0.4, 0.2]]))
    assert said == ["bad", "good"]


def test_a_leaning_prompt_is_set_upright_by_the_rows_themselves() -> None:
    scores = logs([[0.5, 0.4, 0.1], [0.4, 0.3, 0.3]])
    assert votes_of(voter(calibration="none"), scores, None)[0] == ["good", "good"]
    assert votes_of(voter(calibration="batch"), scores, None)[0] == ["good", "bad"]


def test_an_unsure_vote_is_no_vote() -> None:
    scores = logs([[0.5, 0.4, 0.1], [0.25, 0.25, 0.5]])
    assert votes_of(voter(calibration="none", abstain_below=0.8), scores, None)[0] == ["good", None]


@given(
    st.lists(st.lists(st.floats(-60, 0), min_size=3, max_size=3), min_size=1, max_size=6),
    st.floats(-5, 5),
    st.sampled_from(["batch", "content-free", "none"]),
)
def test_probabilities_sum_to_one_and_ignore_what_all_words_share(
    scores: list[list[float]], shift: float, calibration: str
) -> None:
    each, given_scores = voter(calibration=calibration), np.array(scores)
    _, probs = votes_of(each, given_scores, given_scores[:1])
    assert np.allclose(probs.sum(1), 1.0)
    # Batch calibration is of all rows: a shift that is the same everywhere changes nothing.
    assert np.allclose(probs, votes_of(each, given_scores + shift, given_scores[:1] - shift)[1])


@pytest.mark.parametrize(
    ("answer", "label"),
    [("It is good.", "good"), ("BAD, not good", "bad"), ("neither", None), ("", None), ("greatly", "good")],
)
def test_an_answer_names_the_label_it_says_first(answer: str, label: str | None) -> None:
    assert named_first(answer, WORDS) == label


def test_the_longer_of_two_words_at_one_place_counts() -> None:
    assert named_first("unfair", {"fair": ("fair",), "not": ("un",), "unfair": ("unfair",)}) == "unfair"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_of_all_kinds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "voters.yaml",
        """
base: smollm2-135m-instruct
voters:
  - {name: plain, prompt: "{text} It was", words: {good: " good", bad: [" bad", " awful"]}}
  - name: chained
    chain: [{into: asked, prompt: "{text} Asked:"}]
    prompt: "{asked}?"
    words: {good: " yes", bad: " no"}
  - {name: served, adapter: tone@prod, labels: {angry: bad, happy: null}, abstain_below: 0.6}
  - {name: other, endpoint: "http://127.0.0.1:1/v1", model: m, prompt: "{text}", words: {good: good, bad: bad}}
""",
    )
    found = read_voters(path)
    kinds = [type(each) for each in found.voters]
    assert kinds == [PromptVoter, PromptVoter, AdapterVoter, EndpointVoter]
    plain = found.voters[0]
    assert isinstance(plain, PromptVoter)
    assert plain.continuations == (" good", " bad", " awful")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "expected the key `voters`"),
        ("voters: []", "voters"),
        ("voters: [1]", "voters[0] is 1"),
        ("voters: [{name: a, prompt: x, words: {g: ' g'}}]", "a: words"),
        ("voters: [{name: a, prompt: '{x', words: {g: g, b: b}}]", "is not a field name in braces"),
        ("voters: [{name: a, prompt: x, words: {g: g, b: b}, calibrate: none}]", "a: calibrate"),
        ("voters: [{name: a, adapter: t}, {name: a, adapter: t}]", "two voters are named 'a'"),
        ("voters: [{name: a, endpoint: 'file:///etc', model: m, prompt: x, words: {g: g, b: b}}]", "endpoint"),
        (
            "voters: [{name: a, prompt: x, words: {g: g, b: b}, chain: [{into: q, prompt: '{text}'}]}]",
            "the field 'q', which no later prompt uses",
        ),
    ],
)
def test_bad_files_are_refused_with_the_voter_named(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_voters(write(tmp_path / "voters.yaml", text))
    assert wrong in str(caught.value)
    assert "voters.yaml" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        read_voters(tmp_path / "voters.yaml")


def test_scores_are_shared_by_what_is_asked_alone() -> None:
    one, other = voter(), voter(calibration="none", abstain_below=0.5)
    assert one.code_hash() == other.code_hash()
    assert one.vote_hash() != other.vote_hash()
    assert one.code_hash() != voter(prompt="{text} It is").code_hash()
    assert math.isclose(voter().abstain_below, 0.0)
