"""A task's temperature and threshold at the moment of the answer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from adapterhub import AdapterHub
from adapterhub.base.source import Base
from adapterhub.data.task import LEAST_TEMPERATURE, MOST_TEMPERATURE, Calibration, TaskSpec
from adapterhub.registry.store import Registry
from adapterhub.runtime.core import _labelled
from adapterhub.runtime.target import Prediction
from tests.server.publishing import LABELS, publish

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TEXTS = ["where is it", "I am glad", "no!", "thank you so much for the quick help", "x"]


def predict(base: Base, registry: Registry, task: str) -> list[Prediction]:
    with AdapterHub(base, registry) as hub:
        return hub.predict(task, TEXTS)


@pytest.fixture(scope="module")
def plain(base: Base, registry: Registry) -> list[Prediction]:
    return predict(base, registry, "tone")


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_temperature_changes_probabilities_and_no_label(
    base: Base, registry: Registry, plain: list[Prediction], tmp_path: Path, temperature: float
) -> None:
    task = f"tone-{temperature}"
    version = publish(registry, base, task, tmp_path, kind="classification", calibration=Calibration(temperature))
    assert version.digest != registry.resolve("tone").digest
    for answer, before in zip(predict(base, registry, task), plain, strict=True):
        assert answer.label == before.label == max(answer.probs or {}, key=lambda label: (answer.probs or {})[label])
        assert answer.logits == pytest.approx(before.logits, abs=1e-4)
        expected = torch.softmax(torch.tensor(before.logits) / temperature, -1).tolist()
        assert list((answer.probs or {}).values()) == pytest.approx(expected, abs=1e-4)


def test_too_unlikely_a_label_is_not_given(
    base: Base, registry: Registry, plain: list[Prediction], tmp_path: Path
) -> None:
    tops = sorted(max((answer.probs or {}).values()) for answer in plain)
    least = (tops[1] + tops[2]) / 2
    publish(registry, base, "unsure", tmp_path, kind="classification", calibration=Calibration(1.0, least))
    answers = predict(base, registry, "unsure")
    assert sum(answer.label is None for answer in answers) == 2
    for answer, before in zip(answers, plain, strict=True):
        assert answer.probs == pytest.approx(before.probs, abs=1e-5)
        unsure = max((before.probs or {}).values()) < least
        assert answer.label == answer.answer == (None if unsure else before.label)
        assert answer.to_record() == {"label": answer.label, "probs": dict(answer.probs or {})}


def test_multilabel_probabilities_have_a_temperature_too(base: Base, registry: Registry, tmp_path: Path) -> None:
    publish(registry, base, "warm", tmp_path, kind="multilabel", seed=3, calibration=Calibration(2.5))
    for answer, before in zip(predict(base, registry, "warm"), predict(base, registry, "topics"), strict=True):
        assert answer.labels == before.labels
        expected = torch.sigmoid(torch.tensor(before.logits) / 2.5).tolist()
        assert list((answer.probs or {}).values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
@pytest.mark.parametrize("temperature", [LEAST_TEMPERATURE, MOST_TEMPERATURE])
def test_no_finite_logit_becomes_a_probability_that_is_none(kind: str, temperature: float) -> None:
    spec = TaskSpec(kind, "sha256:0", 8, LABELS, calibration=Calibration(temperature))  # type: ignore[arg-type]
    for logits in ([3e38, -3e38, 0.0], [3e38, 3e38, 2.9e38], [-3e38, -3e38, -3e38], [0.0, 0.0, 0.0]):
        probs = _labelled(spec, torch.tensor(logits), 1).probs or {}
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in probs.values())


def test_an_answer_that_is_none_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        _ = Prediction().answer
