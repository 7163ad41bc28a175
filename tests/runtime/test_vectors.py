"""Embeddings and scores of continuations, against plain forwards of transformers and PEFT."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapterhub import AdapterHub
from adapterhub.base.features import features, pool
from adapterhub.base.source import Base, open_base
from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.errors import (
    Cancelled,
    CorruptAdapter,
    InvalidRequest,
    PromptTooLong,
    RefNotFound,
    UnsupportedRequest,
    UsageError,
)
from adapterhub.registry.store import Registry
from adapterhub.runtime.target import GenerationRequest
from tests.adapters import load_peft, load_plain, make_adapter
from tests.server.publishing import LABELS
from tests.tiny import byte_tokenizer, make_tiny_base

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TEXTS = ["where is it", "I am glad", "no!", "thank you so much for the quick help, once more", "ü"]
POOLINGS = ("mean", "last", "cls")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(str(make_tiny_base(tmp_path_factory.mktemp("encoder") / "bert", "bert")))


@pytest.fixture
def encoder_hub(encoder: Base, registry: Registry) -> Iterator[AdapterHub]:
    with AdapterHub(encoder, registry) as found:
        yield found


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def ids_of(text: str) -> list[int]:
    return list(byte_tokenizer()(text)["input_ids"])


def chat_ids(prompt: str) -> list[int]:
    """What the task `writer` makes of a prompt."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Q: {prompt}"}]
    found = byte_tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    return list(found)


@torch.inference_mode()
def hidden(network: object, ids: list[int]) -> torch.Tensor:
    states: torch.Tensor = network(torch.tensor([ids])).last_hidden_state[0]  # type: ignore[operator]
    return states


@torch.inference_mode()
def logprobs(model: object, prompt: list[int], continuation: list[int]) -> list[float]:
    logits = model(input_ids=torch.tensor([prompt + continuation])).logits[0].double()  # type: ignore[operator]
    told = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 :]
    return [float(told[index, token]) for index, token in enumerate(continuation)]


@pytest.mark.parametrize("pooling", [None, *POOLINGS])
def test_the_bases_embeddings_are_its_features(hub: AdapterHub, base: Base, pooling: str | None) -> None:
    found = hub.embed(base.name, TEXTS, pooling)
    close(torch.stack([each.vector for each in found]), features(base, TEXTS, pooling))
    assert [each.prompt_tokens for each in found] == [len(ids_of(text)) for text in TEXTS]


@pytest.mark.parametrize("pooling", [None, *POOLINGS])
def test_an_encoders_embeddings_are_its_features(encoder_hub: AdapterHub, encoder: Base, pooling: str | None) -> None:
    found = encoder_hub.embed(encoder.name, TEXTS, pooling)
    close(torch.stack([each.vector for each in found]), features(encoder, TEXTS, pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_task_embeds_with_its_adapter_and_its_rules(
    hub: AdapterHub, base: Base, registry: Registry, pooling: str
) -> None:
    for task, labels, ids in (("tone", len(LABELS), ids_of), ("writer", None, chat_ids)):
        network = load_peft(base.path, registry.resolve(task).path, labels).get_base_model().model
        expected = torch.stack([pool(hidden(network, ids(text)), pooling) for text in TEXTS])
        close(torch.stack([each.vector for each in hub.embed(task, TEXTS, pooling)]), expected)
        assert (
            float((expected - torch.stack([each.vector for each in hub.embed(base.name, TEXTS, pooling)])).norm()) > 1
        )


def test_an_encoders_task_embeds_with_its_adapter(encoder: Base, tmp_path: Path) -> None:
    folder = make_adapter(encoder.path, tmp_path / "a", "bert", labels=len(LABELS))
    spec = TaskSpec("classification", encoder.fingerprint, 64, LABELS, PromptSpec(template="<{text}>"), "pooler")
    (folder / "task.json").write_text(spec.to_json())
    network = load_peft(encoder.path, folder, len(LABELS)).get_base_model().bert
    with AdapterHub(encoder, tmp_path / "none") as hub:
        target = hub.folder(folder)
        for text, found in zip(TEXTS, hub.embeddings(target, TEXTS), strict=True):
            close(found.vector, hidden(network, ids_of(f"<{text}>")).mean(0))


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_embedding_task_pools_by_its_own_rule_and_its_vectors_have_length_1(
    tmp_path: Path, base: Base, encoder: Base, family: str, pooling: str
) -> None:
    own = base if family == "llama" else encoder
    folder = make_adapter(own.path, tmp_path / "a", family, vectors=True)
    prompt = PromptSpec(template="<{text}>")
    spec = TaskSpec("embedding", own.fingerprint, 64, (), prompt, pooling)  # type: ignore[arg-type]
    (folder / "task.json").write_text(spec.to_json())
    network = load_peft(own.path, folder, None, vectors=True)
    with AdapterHub(own, tmp_path / "none") as hub:
        target = hub.folder(folder)
        vectors = [each.vector for each in hub.embeddings(target, TEXTS)]
        predicted = hub.predict_folder(folder, TEXTS)
        other = [each.vector for each in hub.embeddings(target, TEXTS, "last" if pooling == "mean" else "mean")]
    for text, vector, prediction, differing in zip(TEXTS, vectors, predicted, other, strict=True):
        states = hidden(network, ids_of(f"<{text}>"))
        close(vector, torch.nn.functional.normalize(pool(states, pooling), dim=0))
        assert prediction.to_record() == {"vector": pytest.approx(vector.tolist(), abs=1e-6)}
        assert prediction.prompt_tokens == len(ids_of(f"<{text}>"))
        assert float(vector.norm()) == pytest.approx(1.0, abs=1e-5)
        assert float(differing.norm()) == pytest.approx(1.0, abs=1e-5)
        assert not torch.allclose(vector, differing, atol=1e-3)


def test_an_embedding_task_does_nothing_else(hub: AdapterHub) -> None:
    target = hub.target("search")
    with pytest.raises(UnsupportedRequest, match="'search' is an embedding task; it scores no text"):
        hub.score("search", "hello", [" you"])
    with pytest.raises(UnsupportedRequest, match="'search' is an embedding task; ask it to embed"):
        hub.generate(target, GenerationRequest(text="hello"))
    with pytest.raises(UnsupportedRequest, match="'search' makes vectors"):
        hub.classify(target, ["hello"])
    with pytest.raises(PromptTooLong):
        hub.embed("search", ["x" * 300])


@pytest.mark.parametrize(("pooling", "labels"), [(None, ()), ("pooler", ()), ("mean", ("a",))])
def test_an_embedding_task_with_wrong_rules_is_refused(
    base: Base, tmp_path: Path, pooling: str | None, labels: tuple[str, ...]
) -> None:
    folder = make_adapter(base.path, tmp_path / "a", "llama", vectors=True)
    spec = TaskSpec("embedding", base.fingerprint, 64, labels, PromptSpec(), pooling)  # type: ignore[arg-type]
    (folder / "task.json").write_text(spec.to_json())
    with AdapterHub(base, tmp_path / "none") as hub, pytest.raises(CorruptAdapter, match="makes vectors"):
        hub.predict_folder(folder, ["a"])


def test_a_completion_can_be_scored_with_its_end(hub: AdapterHub, base: Base, registry: Registry) -> None:
    model = load_peft(base.path, registry.resolve("writer").path, None)
    end = byte_tokenizer().eos_token_id
    texts = ("abc", "")
    (found,) = hub.scores(hub.target("writer"), [("is it", texts)], ended=True)
    for score, text in zip(found, texts, strict=True):
        assert score.token_ids == (*ids_of(text), end)
        assert score.token_logprobs == pytest.approx(logprobs(model, chat_ids("is it"), [*ids_of(text), end]), abs=1e-4)


def test_a_vector_is_a_tensor_like_any_other(hub: AdapterHub, base: Base) -> None:
    vector = hub.embed(base.name, TEXTS)[0].vector
    assert (vector.shape, vector.dtype) == ((32,), torch.float32)
    assert vector.untyped_storage().nbytes() == 32 * 4
    weight = torch.ones(32, requires_grad=True)
    (vector * weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, vector)


def test_fields_to_the_base_go_through_its_chat_template(hub: AdapterHub, base: Base) -> None:
    turns = [{"role": "user", "content": "hello"}]
    ids = byte_tokenizer().apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    network = load_plain(base.path, None).model
    for fields in ({"prompt": "hello"}, {"messages": turns}):
        (found,) = hub.embed(base.name, [fields])
        close(found.vector, hidden(network, list(ids)).mean(0))


def test_scores_are_those_of_the_whole_text(hub: AdapterHub, base: Base, registry: Registry) -> None:
    texts = [" yes", " no, never", "x", " yes and then some more words"]
    for task, model, ids in (
        (base.name, load_plain(base.path, None), ids_of),
        ("writer", load_peft(base.path, registry.resolve("writer").path, None), chat_ids),
    ):
        found = hub.score(task, "is it", texts)
        assert [score.text for score in found] == texts
        for score in found:
            expected = logprobs(model, ids("is it"), ids_of(score.text))
            assert score.token_logprobs == pytest.approx(expected, abs=1e-4)
            assert score.logprob == math.fsum(score.token_logprobs)
            assert score.token_ids == tuple(ids_of(score.text))
            assert score.tokens == len(score.token_logprobs) == len(score.text)
            assert score.prompt_tokens == len(ids("is it"))


def test_a_score_depends_on_nothing_that_was_asked_beside_it(hub: AdapterHub) -> None:
    together = hub.score("writer", "hello", ["abc", "abd", "z"])
    for score in together:
        (alone,) = hub.score("writer", "hello", [score.text])
        assert alone.token_logprobs == pytest.approx(score.token_logprobs, abs=1e-5)
    assert together[0].token_logprobs[:2] == pytest.approx(together[1].token_logprobs[:2], abs=1e-5)


def test_a_score_is_the_logprob_that_a_generation_reports(hub: AdapterHub) -> None:
    target, compared = hub.target("writer"), 0
    for prompt in TEXTS:
        request = GenerationRequest(fields={"prompt": prompt}, max_tokens=1, temperature=1, seed=1, logprobs=0)
        (token,) = hub.generate(target, request).result().logprobs or ()
        if ids_of(token.token) == [token.token_id]:  # a byte that is a text of its own
            (score,) = hub.score("writer", prompt, [token.token])
            assert score.logprob == pytest.approx(token.logprob, abs=1e-4)
            compared += 1
    assert compared


def test_many_prompts_are_scored_in_order(hub: AdapterHub) -> None:
    asked = [(f"number {index}", ["a", "bc"]) for index in range(300)]
    found = list(hub.scores(hub.target("writer"), asked))
    assert len(found) == 300
    for index in (0, 255, 299):
        alone = hub.score("writer", *asked[index])
        for score, expected in zip(found[index], alone, strict=True):
            assert score.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("continuations", "error", "param"),
    [
        ([], InvalidRequest, "continuations"),
        (["a", ""], InvalidRequest, "continuations"),
        (["\udcff"], InvalidRequest, "continuations"),
        ("abc", InvalidRequest, "continuations"),
        (["a" * 300], PromptTooLong, "prompt"),
    ],
)
def test_wrong_continuations_name_their_parameter(
    hub: AdapterHub, continuations: list[str], error: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(error) as caught:
        hub.score("writer", "hello", continuations)
    assert caught.value.param == param


def test_who_cannot_score_or_embed_so(hub: AdapterHub, encoder_hub: AdapterHub, encoder: Base) -> None:
    with pytest.raises(UnsupportedRequest, match="classification"):
        hub.score("tone", "hello", ["a"])
    with pytest.raises(UnsupportedRequest, match="encoder"):
        encoder_hub.score(encoder.name, "hello", ["a"])
    with pytest.raises(InvalidRequest, match="max") as caught:
        hub.embed("tone", ["a"], "max")
    assert caught.value.param == "pooling"
    with pytest.raises(PromptTooLong):
        hub.embed("tone", ["a" * 257])
    with pytest.raises(PromptTooLong):
        hub.embed(hub.base.name, ["a" * 600])
    with pytest.raises(RefNotFound):
        hub.embed("nobody", ["a"])
    for ask in (hub.embed, hub.predict):
        with pytest.raises(UsageError, match="one text"):
            ask("tone", "abc")


def test_what_comes_before_a_wrong_input_is_answered(hub: AdapterHub) -> None:
    vectors = hub.embeddings(hub.target("tone"), ["fine", "", "never asked"])
    assert next(vectors).prompt_tokens == 4
    with pytest.raises(InvalidRequest, match="empty"):
        next(vectors)


def test_what_nobody_waits_for_leaves_the_engine(hub: AdapterHub) -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(Cancelled):
        list(hub.embeddings(hub.target("tone"), [f"text {index}" for index in range(200)], cancelled=gone))
    asked = [("text", ["one", "two"])] * 200
    with pytest.raises(Cancelled):
        list(hub.scores(hub.target("writer"), asked, cancelled=gone))
    assert hub.embed("tone", ["next"])[0].prompt_tokens == 4
    assert hub.stats()["waiting"] == hub.stats()["running"] == 0
