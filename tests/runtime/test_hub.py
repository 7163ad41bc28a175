"""Refs answered: the Python API on a tiny base, against plain PEFT on the published folders."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapterhub import AdapterHub
from adapterhub.base.source import Base
from adapterhub.data.task import TaskSpec
from adapterhub.errors import (
    BaseMismatch,
    Cancelled,
    CorruptAdapter,
    InvalidRequest,
    NameTaken,
    PromptTooLong,
    RefNotFound,
    UnsupportedRequest,
    UsageError,
)
from adapterhub.registry.store import Registry
from adapterhub.runtime.stream import Chunk
from adapterhub.runtime.target import GenerationRequest
from tests.adapters import load_peft
from tests.server.publishing import LABELS, make_base, publish
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TEXTS = ["where is it", "I am glad", "no!", "thank you so much for the quick help"]


def plain_logits(base: Base, folder: Path, text: str) -> torch.Tensor:
    ids = byte_tokenizer()(text)["input_ids"]
    with torch.inference_mode():
        logits: torch.Tensor = load_peft(base.path, folder, len(LABELS))(input_ids=torch.tensor([ids])).logits[0]
    return logits


def test_classification_is_what_plain_peft_says(hub: AdapterHub, base: Base, registry: Registry) -> None:
    answers = hub.predict("tone", TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = plain_logits(base, registry.resolve("tone").path, text).softmax(-1)
        assert answer.probs is not None
        assert list(answer.probs) == list(LABELS)
        assert list(answer.probs.values()) == pytest.approx(expected.tolist(), abs=1e-4)
        assert answer.label == LABELS[int(expected.argmax())]
        assert answer.to_record() == {"label": answer.label, "probs": dict(answer.probs)}
        assert answer.prompt_tokens == len(text)


def test_multilabel_takes_every_label_above_one_half(hub: AdapterHub, base: Base, registry: Registry) -> None:
    for text, answer in zip(TEXTS, hub.predict("topics", TEXTS), strict=True):
        expected = plain_logits(base, registry.resolve("topics").path, text).sigmoid().tolist()
        assert list((answer.probs or {}).values()) == pytest.approx(expected, abs=1e-4)
        assert answer.labels == tuple(label for label, p in zip(LABELS, expected, strict=True) if p > 0.5)


def test_generation_reads_the_task_by_its_own_rules(hub: AdapterHub, base: Base, registry: Registry) -> None:
    version = registry.resolve("writer")
    tokenizer = byte_tokenizer()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    model, written = load_peft(base.path, version.path, None), list(ids)
    with torch.inference_mode():
        for _ in range(16):
            written.append(int(model(input_ids=torch.tensor([written])).logits[0, -1].argmax()))
    stream = hub.generate(
        hub.target("writer"), GenerationRequest(fields={"prompt": "hello"}, max_tokens=16, temperature=0)
    )
    whole = stream.result()
    assert list(whole.token_ids) == written[len(ids) :][: len(whole.token_ids)]
    assert whole.prompt_tokens == len(ids)
    (answer,) = hub.predict("writer", ["hello"], max_tokens=16)
    assert answer.completion == whole.text
    assert answer.completion_tokens == whole.completion_tokens


def test_many_inputs_come_back_in_order(hub: AdapterHub) -> None:
    texts = [f"text number {i}" for i in range(600)]
    answers = hub.predict("tone", texts)
    some = [0, 17, 255, 256, 599]
    alone = [hub.predict("tone", [texts[i]])[0] for i in some]
    for i, answer in zip(some, alone, strict=True):
        assert list((answers[i].probs or {}).values()) == pytest.approx(list((answer.probs or {}).values()), abs=1e-5)


def test_tasks_and_base_answer_from_many_threads_as_alone(hub: AdapterHub, base: Base) -> None:
    def ask(kind: int) -> object:
        if kind == 0:
            return hub.predict("tone", ["mixed"])[0].label
        name = "writer" if kind == 1 else base.name
        request = GenerationRequest(
            messages=({"role": "user", "content": f"say {kind}"},), max_tokens=20, temperature=0.8, seed=4
        )
        return hub.generate(hub.target(name), request).result().token_ids

    alone = [ask(kind) for kind in range(3)]
    together: dict[int, object] = {}
    threads = [threading.Thread(target=lambda i=i: together.update({i: ask(i % 3)})) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(12)] == alone * 4
    assert alone[1] != alone[2]


def test_stream_ends_at_a_stop_string_and_never_shows_its_beginning(hub: AdapterHub) -> None:
    request = GenerationRequest(text="abc", max_tokens=40, temperature=0, ignore_eos=True)
    whole = hub.generate(hub.target("writer"), request).result()
    # Bytes that are no character are shown only once it is certain, so take a stop from what was shown.
    stop = whole.text[3:6]
    cut = whole.text.index(stop)
    stream = hub.generate(
        hub.target("writer"), GenerationRequest(text="abc", max_tokens=40, temperature=0, ignore_eos=True, stop=(stop,))
    )
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text[:cut]
    assert chunks[-1].finish_reason == "stop"
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_late_subscribers_get_everything_in_order(hub: AdapterHub) -> None:
    stream = hub.generate(hub.target("writer"), GenerationRequest(text="abc", max_tokens=5, temperature=0))
    whole = stream.result()
    seen: list[Chunk | Exception] = []
    stream.subscribe(seen.append)
    assert [t for chunk in seen if isinstance(chunk, Chunk) for t in chunk.token_ids] == list(whole.token_ids)


def test_logprobs_and_usage(hub: AdapterHub) -> None:
    request = GenerationRequest(token_ids=(70, 71), max_tokens=4, min_tokens=4, temperature=0, logprobs=3)
    whole = hub.generate(hub.target("writer"), request).result()
    assert whole.prompt_tokens == 2
    assert whole.completion_tokens == len(whole.token_ids) == 4
    assert whole.logprobs is not None
    for token, logprob in zip(whole.token_ids, whole.logprobs, strict=True):
        assert logprob.token_id == token
        assert len(logprob.top) == 3
        assert logprob.logprob == logprob.top[0][2] <= 0


def test_a_new_version_is_served_at_once_and_old_targets_stay(
    hub: AdapterHub, base: Base, registry: Registry, tmp_path: Path
) -> None:
    old = hub.target("writer")
    publish(registry, base, "writer", tmp_path, seed=9)
    new = hub.target("writer")
    assert (new.version, old.version) == (2, 1)
    request = GenerationRequest(text="abc", max_tokens=12, temperature=0, ignore_eos=True)
    assert hub.generate(old, request).result().text != hub.generate(new, request).result().text
    registry.alias("writer", "prod", "writer@1")
    assert hub.target("writer").digest == old.digest


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (GenerationRequest(text="a", temperature=-1), InvalidRequest, "temperature"),
        (GenerationRequest(text="a", top_p=0), InvalidRequest, "top_p"),
        (GenerationRequest(text="a", max_tokens=0), InvalidRequest, "max_tokens"),
        (GenerationRequest(text="a", max_tokens=3, min_tokens=4), InvalidRequest, "min_tokens"),
        (GenerationRequest(text="a", logprobs=21), InvalidRequest, "logprobs"),
        (GenerationRequest(text="a", stop=("",)), InvalidRequest, "stop"),
        (GenerationRequest(), InvalidRequest, "prompt"),
        (GenerationRequest(token_ids=(99999,)), InvalidRequest, "prompt"),
        (GenerationRequest(text="a" * 300), PromptTooLong, "prompt"),
        (GenerationRequest(text="a" * 200, max_tokens=100), PromptTooLong, "max_tokens"),
    ],
)
def test_wrong_requests_name_their_parameter(
    hub: AdapterHub, request_: GenerationRequest, error: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(error) as caught:
        hub.generate(hub.target("writer"), request_)
    assert caught.value.param == param


def test_wrong_targets(hub: AdapterHub, base: Base) -> None:
    with pytest.raises(RefNotFound, match="tone"):
        hub.target("tonne")
    with pytest.raises(UnsupportedRequest):
        hub.classify(hub.target("writer"), ["a"])
    with pytest.raises(UnsupportedRequest):
        hub.generate(hub.target("tone"), GenerationRequest(text="a"))
    with pytest.raises(UnsupportedRequest):
        hub.classify(hub.target(base.name), ["a"])
    with pytest.raises(PromptTooLong, match="256"):
        hub.predict("tone", ["a" * 257])
    with pytest.raises(InvalidRequest):
        hub.predict("tone", [{"wrong": "field"}])


def test_another_base_is_refused_by_name(registry: Registry, tmp_path: Path) -> None:
    with (
        AdapterHub(make_base(tmp_path / "other", seed=5), registry) as hub,
        pytest.raises(BaseMismatch, match="local/tiny"),
    ):
        hub.predict("tone", ["a"])


def test_changed_weights_are_refused(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    version = publish(registry, base, "tone", tmp_path, kind="classification")
    weights = version.path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with AdapterHub(base, registry) as hub, pytest.raises(CorruptAdapter, match="hash"):
        hub.predict("tone", ["a"])


def test_models_lists_base_tasks_aliases_and_versions(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    with AdapterHub(base, registry) as hub:
        assert [m.id for m in hub.models()] == [base.name]
        publish(registry, base, "tone", tmp_path, kind="classification")
        publish(registry, base, "tone", tmp_path, kind="classification", seed=1)
        registry.alias("tone", "prod", "tone@1")
        listed = hub.models()
        assert [m.id for m in listed] == [base.name, "tone", "tone@prod", "tone@1", "tone@2"]
        assert {m.parent for m in listed[1:]} == {base.name}
        assert listed[1].digest == registry.resolve("tone@1").digest
        (tmp_path / "registry" / "broken").mkdir()
        (tmp_path / "registry" / "broken" / "index.json").write_text("{")
        assert [m.id for m in hub.models()] == [m.id for m in listed]


def test_a_cancelled_generation_ends_for_who_waits(hub: AdapterHub) -> None:
    stream = hub.generate(hub.target("writer"), GenerationRequest(text="abc", max_tokens=250, ignore_eos=True))
    next(iter(stream))
    stream.cancel()
    with pytest.raises(Cancelled):
        stream.result()


def test_closing_ends_what_runs(base: Base, registry: Registry) -> None:
    hub = AdapterHub(base, registry)
    request = GenerationRequest(text="abc", max_tokens=200, temperature=0, ignore_eos=True)
    drained = hub.generate(hub.target("writer"), request)
    hub.close(drain_seconds=60)
    assert drained.result().completion_tokens == 200
    with pytest.raises(Cancelled):
        hub.generate(hub.target("writer"), request)


def test_without_a_base_nothing_is_guessed(registry: Registry) -> None:
    with AdapterHub(None, registry) as hub, pytest.raises(UsageError, match="no base"):
        hub.models()


def test_an_input_that_cannot_be_answered_comes_after_the_answers_before_it(hub: AdapterHub) -> None:
    answers = hub.answers(hub.target("tone"), ["fine", "fine too", "", "never asked"])
    assert next(answers).label in LABELS
    assert next(answers).label in LABELS
    with pytest.raises(InvalidRequest, match="empty"):
        next(answers)


def test_answers_come_while_the_input_still_flows(hub: AdapterHub) -> None:
    taken: list[str] = []

    def slow() -> Iterator[str]:
        for text in ("one", "two", "three"):
            taken.append(text)
            yield text

    answers = hub.answers(hub.target("tone"), slow())
    next(answers)
    assert len(taken) <= 3
    assert len(list(answers)) == 2


def test_what_nobody_waits_for_any_more_leaves_the_engine(hub: AdapterHub) -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(Cancelled):
        hub.classify(hub.target("tone"), [f"text {i}" for i in range(200)], gone)
    # Everything given up is forgotten, so the next answer does not wait behind it.
    assert hub.predict("tone", ["next"])[0].label in LABELS
    assert hub.stats()["waiting"] == 0


def test_a_model_is_described_by_its_name(hub: AdapterHub, base: Base, registry: Registry) -> None:
    described = hub.model("tone@1")
    assert (described.id, described.parent, described.kind) == ("tone@1", base.name, "classification")
    assert described.digest == registry.resolve("tone").digest
    assert hub.model(base.name).parent is None
    with pytest.raises(RefNotFound):
        hub.model("nobody")


def test_a_task_named_like_the_base_is_not_answered_by_the_base(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    publish(registry, base, "tiny", tmp_path, kind="classification")
    named = replace(base, name="tiny")
    with AdapterHub(named, registry) as hub:
        with pytest.raises(NameTaken, match="tiny@1"):
            hub.target("tiny")
        assert hub.target("tiny@1").spec is not None


def test_more_labels_than_the_head_tells_apart_are_refused(base: Base, registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(registry.resolve("tone").path, folder)
    spec = TaskSpec.from_json((folder / "task.json").read_text())
    (folder / "task.json").write_text(replace(spec, labels=(*spec.labels, "one more")).to_json())
    with AdapterHub(base, registry) as hub, pytest.raises(CorruptAdapter, match="4 labels"):
        hub.predict_folder(folder, ["a"])


def test_rules_read_once_hold_for_the_digest(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    version = publish(registry, base, "tone", tmp_path, kind="classification")
    with AdapterHub(base, registry) as hub:
        before = hub.predict("tone", ["a"])[0]
        path = version.path / "task.json"
        path.write_text(path.read_text().replace("calm", "CALM"))
        assert hub.predict("tone", ["a"])[0].to_record() == before.to_record()


def test_stop_strings_wait_for_min_tokens(hub: AdapterHub) -> None:
    free = GenerationRequest(text="abc", max_tokens=30, temperature=0, ignore_eos=True)
    whole = hub.generate(hub.target("writer"), free).result()
    stop = whole.text[0]
    held = replace(free, stop=(stop,), min_tokens=8)
    answer = hub.generate(hub.target("writer"), held).result()
    assert answer.completion_tokens >= 8
    assert hub.generate(hub.target("writer"), replace(free, stop=(stop,))).result().completion_tokens < 8


def test_odd_text_is_refused_by_name(hub: AdapterHub) -> None:
    for request in (GenerationRequest(text="\udcff"), GenerationRequest(fields={"prompt": "\udcff"})):
        with pytest.raises(InvalidRequest):
            hub.generate(hub.target("writer"), request)
    with pytest.raises(InvalidRequest):
        hub.predict("tone", ["\udcff"])
