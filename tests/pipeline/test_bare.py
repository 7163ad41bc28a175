"""The bare base on a task: what it is shown, and that nothing of the answer is shown with the question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub import AdapterHub
from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.errors import UsageError
from adapterhub.pipeline.bare import _completions, _rendered, choose_shots, label_prompt, measure_bare
from adapterhub.pipeline.measure import completion_limits
from adapterhub.runtime.target import GenerationRequest
from tests.server.publishing import make_base
from tests.tiny import CHAT_TEMPLATE, make_tiny_base

LABELS = ("cold_one", "warm")
ROWS = [
    Example(f"{place}", {"text": f"text {place} {{brace}}", "label": LABELS[place % 2]}, where=f"r:{place}")
    for place in range(10)
]
ASKED = [
    Example(f"{place}", {"prompt": f"say {place}", "completion": f"{place}"}, where=f"g:{place}") for place in range(5)
]
CHAT = PromptSpec("chat", system="Be brief.", template="Q: {prompt}", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def hub(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdapterHub]:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    with AdapterHub(base, tmp_path / "registry") as found:
        yield found


def labels_spec(base: Base) -> TaskSpec:
    return TaskSpec("classification", base.fingerprint, 256, LABELS, pooling="last")


def test_shots_are_of_each_label_as_many_and_always_the_same(base: Base) -> None:
    spec = labels_spec(base)
    chosen = choose_shots(ROWS, spec, 4)
    assert sorted(str(row.label) for row in chosen) == ["cold_one", "cold_one", "warm", "warm"]
    assert chosen == choose_shots(ROWS, spec, 4)
    assert chosen != choose_shots(ROWS, spec, 4, seed=1)
    assert len(choose_shots(ROWS, spec, 99)) == len(ROWS)


def test_the_prompt_names_labels_as_people_say_them_and_keeps_braces(base: Base) -> None:
    voter = label_prompt(labels_spec(base), ROWS[:1])
    assert dict(voter.words) == {"cold_one": (" cold one",), "warm": (" warm",)}
    assert "Text: text 0 {{brace}}\nCategory: cold one" in voter.prompt
    assert voter.prompt.endswith("Text: {_given}\nCategory:")


@pytest.mark.parametrize("shots", [(), tuple(ROWS[:2])])
def test_labels_are_measured_on_all_rows(hub: AdapterHub, base: Base, shots: tuple[Example, ...]) -> None:
    metrics = measure_bare(hub, labels_spec(base), ROWS, shots)
    assert 0.0 <= metrics["accuracy"].value <= 1.0
    # The gold labels are compared with, never shown: other ones give the mirrored figure.
    other = [replace(row, fields={**row.fields, "label": LABELS[1 - LABELS.index(str(row.label))]}) for row in ROWS]
    mirrored = measure_bare(hub, labels_spec(base), other, shots)
    assert mirrored["accuracy"].value == pytest.approx(1 - metrics["accuracy"].value)


@pytest.mark.parametrize("prompt", [CHAT, PromptSpec(template="{prompt}\nA: ")])
def test_a_generation_is_asked_as_the_task_is(hub: AdapterHub, base: Base, prompt: PromptSpec) -> None:
    spec = TaskSpec("generation", base.fingerprint, 256, prompt=prompt)
    rows = [replace(row, fields={**row.fields, "completion": "xx"}) for row in ASKED]
    assert measure_bare(hub, spec, rows)["exact_match"].value == 0.0  # a random base writes nothing right


def test_a_plain_prompt_is_the_text_the_adapter_reads(hub: AdapterHub, base: Base) -> None:
    spec = TaskSpec("generation", base.fingerprint, 256, prompt=PromptSpec(template="{prompt}\nA: "))
    rows = [replace(ASKED[0], fields={"prompt": "say 0", "completion": "xx"})]
    (limit,) = completion_limits(hub.base, spec, rows)
    by_hand = GenerationRequest(text="say 0\nA: ", max_tokens=limit, temperature=0.0, stop=("\n\n",))
    written = hub.generate(hub.target(hub.base.name), by_hand).result().text
    assert _completions(hub, spec, rows, (), lambda answers, _: answers) == [written.strip()]


def test_shots_stand_before_the_row_in_a_chat(base: Base) -> None:
    spec = TaskSpec("generation", base.fingerprint, 256, prompt=CHAT)
    messages = _rendered(spec, ASKED[2], ASKED[:2]).fields["messages"]
    assert [turn["role"] for turn in messages] == ["system", *["user", "assistant"] * 3]
    assert [turn["content"] for turn in messages[1:]] == ["Q: say 0", "0", "Q: say 1", "1", "Q: say 2", "2"]
    plain = replace(spec, prompt=PromptSpec(template="{prompt}\nA: "))
    assert _rendered(plain, ASKED[2], ASKED[:1]).fields["prompt"] == "say 0\nA: 0\n\nsay 2\nA: "


def test_what_cannot_be_asked_is_refused(hub: AdapterHub, base: Base, tmp_path: Path) -> None:
    spec = TaskSpec("multilabel", base.fingerprint, 256, LABELS, pooling="last")
    with pytest.raises(UsageError, match="cannot be measured on a multilabel task"):
        measure_bare(hub, spec, [Example("a", {"text": "t", "labels": ["warm"]})])
    bert = open_base(str(make_tiny_base(tmp_path / "bert", "bert")))
    with AdapterHub(bert, tmp_path / "registry") as encoder, pytest.raises(UsageError, match="is an encoder"):
        measure_bare(encoder, labels_spec(base), ROWS)
