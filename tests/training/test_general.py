"""Any base under PEFT: what learns, what is frozen, and losses beside slow references."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapterhub.base.load import load_tokenizer
from adapterhub.training.general import GeneralNetwork, PeftLearner, build_learner, completion_positions
from adapterhub.training.job import Evaluation
from adapterhub.training.objectives import objective_for
from adapterhub.training.rows import Row, collate
from tests.tiny import FAMILIES
from tests.training.jobs import make_job, make_recipe, tiny_base, toy_rows

CPU = torch.device("cpu")
DECODERS = tuple(family for family in FAMILIES if family != "bert")


def network_of(folder: Path, family: str = "llama", **changes: Any) -> PeftLearner:
    """Return a fresh network in eval mode whose LoRA matrices are not zero."""
    base = tiny_base(folder, family)
    network = build_learner(make_job(base, toy_rows(4), **changes), load_tokenizer(base).pad_token_id, 32, CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    network.model.eval()
    return network


def reference_logits(network: PeftLearner, row: Row) -> Tensor:
    """Return the model's own logits for one row alone, unpadded: [1, labels] or [1, tokens, vocabulary]."""
    result: Tensor = network.model(input_ids=torch.tensor([row.ids])).logits
    return result


def reference_loss(network: PeftLearner, rows: Sequence[Row]) -> float:
    """Mean loss of completion tokens, one row and one token at a time."""
    total = count = 0.0
    for row in rows:
        logits = reference_logits(network, row)[0].double()
        for position in range(row.start, len(row.ids)):
            log_probability = logits[position - 1].log_softmax(-1)[row.ids[position]]
            total -= row.weight * float(log_probability)
            count += row.weight
    return total / count


def text_rows(targets: Sequence[tuple[float, ...]], weights: Sequence[float]) -> list[Row]:
    return [
        Row(tuple(range(10 + i, 14 + 3 * i)), 4 + 2 * i, target, weight, "")
        for i, (target, weight) in enumerate(zip(targets, weights, strict=True))
    ]


def mean_loss(network: PeftLearner, kind: Any, rows: list[Row], pad: int = 0) -> Tensor:
    objective, batch = objective_for(kind), collate(rows, pad, CPU)
    return objective.loss(objective.outputs(network, batch), batch) / objective.share(batch)


def judged(
    learner: PeftLearner, kind: Any, rows: list[Row], size: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> Evaluation:
    """What validation says, from batches of `size` rows in parts of so many tokens."""
    monkeypatch.setattr("adapterhub.training.general.PART_TOKENS", tokens)
    objective = objective_for(kind)
    found = GeneralNetwork(learner, 0, size, CPU).judge(learner, objective, rows)
    assert learner.model.training
    learner.model.eval()
    mean = found.loss / found.share
    return Evaluation(0, objective.metric, objective.value(found.tallies, mean), mean)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("pad", [0, 2])
def test_generation_loss_is_that_of_completion_tokens_and_eos_even_where_pad_is_eos(
    tmp_path: Path, family: str, pad: int
) -> None:
    network = network_of(tmp_path, family, kind="generation")
    end = 2
    rows = [
        Row((11, 12, 13, 14, 15, end), 3, (), 1.0, ""),
        Row((21, 22, end), 2, (), 1.0, ""),
        Row((31, end, 32, 33, 34, 35, 36, end, end), 1, (), 0.5, ""),
    ]
    with torch.no_grad():
        assert float(mean_loss(network, "generation", rows, pad)) == pytest.approx(
            reference_loss(network, rows), rel=1e-5
        )


def test_log_probabilities_of_completions_equal_those_of_the_whole_vocabulary_matrix(tmp_path: Path) -> None:
    network = network_of(tmp_path, kind="generation")
    rows = [Row((11, 12, 13, 14, 2), 2, (), 1.0, ""), Row((21, 22, 2), 1, (), 1.0, "")]
    batch = collate(rows, 0, CPU)
    seen: list[torch.Size] = []
    network.head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        chosen = objective_for("generation").outputs(network, batch)
        full = network.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    places, columns = completion_positions(batch)
    assert list(zip(places.tolist(), columns.tolist(), strict=True)) == [(0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    assert batch.answer_owners.tolist() == places.tolist()
    likely = full.log_softmax(-1)[places, columns - 1, batch.input_ids[places, columns]]
    torch.testing.assert_close(chosen, likely)
    # The saving: 5 positions went through the head; without the hook all 10 do again.
    assert [shape[:2].numel() for shape in seen] == [5, 10]


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_classification_losses_equal_a_row_by_row_reference(tmp_path: Path, family: str, kind: str) -> None:
    network = network_of(tmp_path, family, kind=kind)
    soft = [(0.25, 0.75), (1.0, 0.0), (0.0, 1.0)] if kind == "classification" else [(1.0, 1.0), (0.0, 0.0), (0.3, 1.0)]
    rows = text_rows(soft, [1.0, 2.0, 0.5])
    total = 0.0
    with torch.no_grad():
        for row in rows:
            logits = reference_logits(network, row)[0].double().tolist()
            if kind == "classification":
                log_total = math.log(sum(math.exp(z) for z in logits))
                loss = -sum(t * (z - log_total) for t, z in zip(row.target, logits, strict=True))
            else:
                sigmoids = [1 / (1 + math.exp(-z)) for z in logits]
                each = [t * math.log(p) + (1 - t) * math.log(1 - p) for t, p in zip(row.target, sigmoids, strict=True)]
                loss = -sum(each) / len(each)
            total += row.weight * loss
        assert float(mean_loss(network, kind, rows)) == pytest.approx(total / 3.5, rel=1e-5)


def test_a_decoder_is_pooled_at_the_last_token_even_if_that_is_the_pad_token(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    pad = 0
    ends_with_pad, longer = (
        Row((11, 12, pad), 3, (1.0, 0.0), 1.0, ""),
        Row((21, 22, 23, 24, 25), 5, (0.0, 1.0), 1.0, ""),
    )
    batch = collate([ends_with_pad, longer], pad, CPU)
    with torch.no_grad():
        logits = network.classify(batch)
        hidden = network.inner.model(input_ids=torch.tensor([[11, 12, pad]])).last_hidden_state
        torch.testing.assert_close(logits[0], network.inner.score(hidden[0, 2]))
        # transformers skips the text's own last token.
        theirs = network.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(logits[1], theirs[1])
        assert not torch.allclose(logits[0], theirs[0], atol=1e-3)


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_uneven_parts_of_a_batch_have_the_gradient_of_the_whole(tmp_path: Path, kind: str) -> None:
    network = network_of(tmp_path, kind=kind)
    if kind == "generation":
        rows = [
            Row((11, 12, 13, 14, 15, 2), 1, (), 1.0, ""),
            Row((21, 2), 1, (), 1.0, ""),
            Row((31, 32, 2), 1, (), 2.0, ""),
        ]
    else:
        rows = text_rows([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)], [1.0, 3.0, 0.5])
    mean_loss(network, kind, rows).backward()
    whole = {name: p.grad.clone() for name, p in network.parameters().items() if p.grad is not None}
    network.model.zero_grad()
    objective = objective_for(kind)  # type: ignore[arg-type]
    parts = [collate(rows[:1], 0, CPU), collate(rows[1:], 0, CPU)]
    share = sum(objective.share(part) for part in parts)
    for part in parts:
        (objective.loss(objective.outputs(network, part), part) / share).backward()
    assert whole
    for name, gradient in whole.items():
        torch.testing.assert_close(network.parameters()[name].grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_adapter_matrix_and_the_head_and_nothing_else(tmp_path: Path, family: str) -> None:
    network = network_of(tmp_path, family)
    rows = text_rows([(1.0, 0.0), (0.0, 1.0)], [1.0, 1.0])
    mean_loss(network, "classification", rows).backward()
    head = "classifier" if family == "bert" else "score"
    for name, parameter in network.model.named_parameters():
        learns = "lora_" in name or f"{head}.modules_to_save" in name
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name
        assert parameter.dtype == torch.float32


def test_a_base_in_bfloat16_keeps_what_learns_in_float32(tmp_path: Path) -> None:
    for family in ("llama", "bert"):
        network = network_of(tmp_path, family, training={"precision": "bfloat16"})
        for name, parameter in network.model.named_parameters():
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        loss = mean_loss(network, "classification", text_rows([(1.0, 0.0), (0.0, 1.0)], [1.0, 1.0]))
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters().values())
    generation = network_of(tmp_path, kind="generation", training={"precision": "bfloat16"})
    mean_loss(generation, "generation", [Row((11, 12, 2), 1, (), 1.0, "")]).backward()
    assert all(p.grad is not None for p in generation.parameters().values())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("gpt2", "base_model.model.transformer.h.2.attn.c_attn.lora_B.weight"),
        ("bert", "base_model.model.bert.encoder.layer.0.attention.output.dense.lora_A.weight"),
    ],
)
def test_saved_names_are_those_of_peft(tmp_path: Path, family: str, expected: str) -> None:
    names = set(network_of(tmp_path, family).saved())
    head = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    assert expected in names
    assert {name for name in names if "lora_" not in name} == (
        head if family == "bert" else {"base_model.model.score.weight"}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_are_written_out_and_plain_peft_finds_them(tmp_path: Path, family: str) -> None:
    network = network_of(tmp_path, family)
    assert json.loads(network.config.to_json())["layers_to_transform"] == [0, 1, 2]
    layers = {re.search(r"\.(\d+)\.", name)[1] for name in network.saved() if "lora_" in name}  # type: ignore[index]
    assert layers == {"0", "1", "2"}


def test_layers_and_variant_reach_the_network(tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8.0, "layers": "top-1", "targets": ["q_proj", "v_proj"], "variant": "rslora"}
    network = network_of(tmp_path, lora=lora)
    names = {name for name in network.saved() if "lora_" in name}
    prefix = "base_model.model.model.layers.2.self_attn."
    assert names == {f"{prefix}{p}_proj.lora_{side}.weight" for p in "qv" for side in "AB"}
    assert network.config.layers == (2,)
    assert network.config.rslora
    module = network.inner.model.layers[2].self_attn.q_proj
    assert module.scaling["default"] == pytest.approx(8.0 / math.sqrt(4))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_is_that_of_torch_for_hard_and_soft_targets(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, requires_grad=True), torch.tensor([2, 0, 3])
    objective = objective_for("classification", make_recipe(training={"label_smoothing": smoothing}).training)
    hard = [Row((11,), 1, tuple(float(at == label) for at in range(4)), 1.0, "") for label in labels.tolist()]
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(objective.loss(logits, collate(hard, 0, CPU)), expected)
    soft = [(0.5, 0.25, 0.25, 0.0), (0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 0.0, 1.0)]
    rows = [Row((11,), 1, target, weight, "") for target, weight in zip(soft, (1.0, 2.0, 0.5), strict=True)]
    slow = torch.tensor(0.0)
    for row, each in zip(rows, logits.log_softmax(-1), strict=True):
        smooth = torch.tensor([(1 - smoothing) * part + smoothing / 4 for part in row.target])
        slow = slow - row.weight * (smooth * each).sum()
    torch.testing.assert_close(objective.loss(logits, collate(rows, 0, CPU)), slow)


def test_a_label_is_given_from_one_half_on() -> None:
    rows = [Row((11,), 1, target, 1.0, "") for target in ((1.0, 0.0), (1.0, 1.0))]
    logits = torch.tensor([[0.0, -1e-6], [-1e-6, 0.0]])
    assert objective_for("multilabel").tally(logits, collate(rows, 0, CPU)).tolist() == [2, 0, 1]


def test_evaluation_does_not_depend_on_how_rows_are_batched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(tmp_path, kind="multilabel")
    targets = [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    rows = text_rows(targets, [1.0] * 5)
    results = [
        judged(network, "multilabel", rows, size, tokens, monkeypatch)
        for size, tokens in ((5, 1000), (2, 1000), (5, 8), (1, 1))
    ]
    for result in results:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)
        assert result.value == results[0].value
    with torch.no_grad():
        given = [[z >= 0 for z in reference_logits(network, row)[0].tolist()] for row in rows]
    pairs = [
        (got, want >= 0.5)
        for row, got_row in zip(rows, given, strict=True)
        for got, want in zip(got_row, row.target, strict=True)
    ]
    right = sum(got and want for got, want in pairs)
    assert results[0].value == pytest.approx(2 * right / (2 * right + sum(got != want for got, want in pairs)))


def test_accuracy_counts_rows_whose_largest_logit_is_the_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(tmp_path)
    rows = text_rows([(1.0, 0.0)] * 6, [1.0] * 6)
    with torch.no_grad():
        right = sum(int(reference_logits(network, row).argmax()) == 0 for row in rows)
    value = judged(network, "classification", rows, 4, 100, monkeypatch).value
    assert value == pytest.approx(right / 6)
