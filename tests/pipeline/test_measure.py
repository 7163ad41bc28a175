from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.data.task import Calibration, TaskSpec
from adapterhub.errors import DataError, InvalidRequest, PromptTooLong
from adapterhub.pipeline.measure import answers, completion_limits, gold_answers, score
from adapterhub.runtime.target import Prediction
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    return open_base(str(make_tiny_base(folder / "tiny")), cache=folder / "cache")


def rows(*pairs: tuple[int, int]) -> list[Example]:
    """Prompts and completions of so many letters, which are as many tokens."""
    return [
        Example(str(n), {"prompt": "p" * prompt, "completion": "c" * completion}, where=f"f.jsonl:{n + 1}")
        for n, (prompt, completion) in enumerate(pairs)
    ]


def spec(base: Base, max_length: int = 400) -> TaskSpec:
    return TaskSpec("generation", base.fingerprint, max_length)


def test_the_longest_gold_completion_has_room_with_its_end_and_a_margin(base: Base) -> None:
    assert completion_limits(base, spec(base), rows((5, 300), (5, 2))) == [309, 309]
    assert completion_limits(base, spec(base), rows((5, 1))) == [16]
    assert completion_limits(base, spec(base), rows((5, 300)), 7) == [7]
    assert completion_limits(base, TaskSpec("classification", base.fingerprint, 40, ("a",)), rows((5, 3))) == []


def test_no_limit_is_more_than_what_fits_after_its_prompt(base: Base) -> None:
    assert completion_limits(base, spec(base, 100), rows((5, 50), (90, 5), (45, 5))) == [59, 10, 55]


def test_rows_of_different_limits_are_all_answered_and_scored(base: Base) -> None:
    examples = rows((5, 50), (90, 5), (45, 5), (6, 50))
    asked: list[tuple[int, int]] = []

    def ask(inputs: Iterable[Mapping[str, Any]], *, max_tokens: int) -> Iterator[Prediction]:
        for fields in inputs:
            asked.append((len(fields["prompt"]), max_tokens))
            yield Prediction(completion=fields["completion"] if len(fields["prompt"]) != 45 else "?")

    limits = completion_limits(base, spec(base, 100), examples)
    metrics = score(spec(base), examples, gold_answers(ask, examples, limits))
    assert metrics["exact_match"].value == 0.75
    assert sorted(asked) == [(5, 59), (6, 59), (45, 55), (90, 10)]


def test_rejected_rows_are_wrong_and_rejections_are_measured() -> None:
    labels = ("a", "b")
    task = TaskSpec("classification", "sha256:0", 40, labels, calibration=Calibration(1.0, 0.7))

    def answer(first: float) -> Prediction:
        label = None if max(first, 1 - first) < 0.7 else labels[first < 0.5]
        return Prediction(label=label, probs={"a": first, "b": 1 - first})

    examples = [Example(str(n), {"text": "t", "label": label}) for n, label in enumerate("aabb")]
    found = score(task, examples, enumerate(map(answer, (0.9, 0.6, 0.2, 0.8))), [answer(0.5), answer(0.7)])
    assert set(found) == {"accuracy", "macro_f1", "ece", "in_scope_accuracy", "oos_recall", "oos_auroc"}
    # The second is right and rejected, the last is wrong.
    assert found["accuracy"].value == 0.75
    assert found["macro_f1"].value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["in_scope_accuracy"].value == 0.5
    assert found["ece"].value == pytest.approx((0.1 + 0.4 + (0.8 + 0.8 - 1)) / 4)
    assert found["oos_recall"].value == 0.5
    assert found["oos_auroc"].value == pytest.approx((4 + 3) / 8)
    three, always = {"accuracy", "macro_f1", "ece"}, replace(task, calibration=None)
    for asked, names in ((task, three | {"in_scope_accuracy"}), (always, three)):
        assert set(score(asked, examples, enumerate(map(answer, (0.9, 0.6, 0.2, 0.8))))) == names


def test_a_refusal_names_the_row_and_comes_after_the_answers_before_it() -> None:
    def ask(inputs: Iterable[Mapping[str, Any]]) -> Iterator[Prediction]:
        ahead = list(inputs)
        for fields in ahead:
            if len(fields["prompt"]) > 9:
                raise PromptTooLong("too long", param="prompt")
            yield Prediction(completion="ok")

    answered = answers(ask, rows((1, 1), (1, 1), (10, 1), (1, 1)))
    assert [next(answered).completion, next(answered).completion] == ["ok", "ok"]
    with pytest.raises(PromptTooLong, match=r"f\.jsonl:3: too long") as caught:
        next(answered)
    assert caught.value.param == "prompt"


def test_other_errors_and_rows_without_a_place_stay_as_they_are() -> None:
    def refuse(inputs: Iterable[Mapping[str, Any]]) -> Iterator[Prediction]:
        list(inputs)
        raise InvalidRequest("no")
        yield

    with pytest.raises(InvalidRequest, match=r"^no$"):
        list(answers(refuse, [Example("", {"prompt": "a"})]))

    def broken() -> Iterator[Example]:
        yield Example("", {"prompt": "a"}, where="f:1")
        raise DataError("f:2: bad")

    with pytest.raises(DataError, match=r"^f:2: bad$"):
        list(answers(lambda inputs: [Prediction(completion="a") for _ in inputs], broken()))


def test_a_prompt_that_cannot_be_read_is_named(base: Base, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="f:1: the text is empty"):
        completion_limits(base, spec(base), [Example("", {"prompt": "", "completion": "c"}, where="f:1")])
