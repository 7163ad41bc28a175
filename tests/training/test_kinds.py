"""Whole trainings of the kinds that learn from pairs: they learn, they repeat exactly, and plain PEFT agrees."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from adapterhub.base.load import load_tokenizer
from adapterhub.data.example import Example
from adapterhub.data.tokens import encode_completion, encode_input
from adapterhub.errors import DataError
from adapterhub.registry.bundle import digest_folder
from adapterhub.training.rows import encode_rows
from adapterhub.training.train import train_adapter
from tests.training.jobs import Recorder, example, make_job, tiny_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # asked by PEFT


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_base(tmp_path_factory.mktemp("base"), "llama")


def preferences(count: int, seed: int = 0) -> list[Example]:
    """Answers in one letter; of two, the one of a is preferred."""
    dice = random.Random(seed)
    return [
        example(f"f:{n}", prompt="".join(dice.choices("uvw", k=4)), chosen="a" * dice.randint(1, 3), rejected="b" * 2)
        for n in range(count)
    ]


def topics(count: int, seed: int = 0) -> list[Example]:
    """Texts of one letter and noise, whose positive is a text of the same letter and other noise."""
    dice = random.Random(seed)
    letters = "ABCDEFGHIJKL"

    def text(letter: str) -> str:
        return "".join(dice.choice((letter, letter, ".", "-", "_")) for _ in range(8)) + letter

    return [
        example(f"f:{n}", text=text(letter), positive=f"<{letter * 3}>", negative=f"<{letter}{letter}?>")
        for n in range(count)
        for letter in [letters[n % 12]]
    ]


def test_a_preference_is_learnt_and_the_task_generates(tmp_path: Path, llama: Any) -> None:
    settings = {"steps": 40, "batch_size": 8, "learning_rate": 5e-3, "eval_every": 20}
    rows, held = preferences(64), preferences(16, seed=1)
    progress = Recorder()
    job = make_job(llama, rows, held, kind="preference", style="chat", training=settings)
    result = train_adapter(job, tmp_path / "out", progress)
    assert result.best is not None
    assert (result.best.metric, result.best.value) == ("preference_accuracy", 1.0)
    assert result.best.loss < 0.3
    assert result.spec.kind == "generation"
    assert result.spec.pooling is None
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert "what the base alone says of 80 preferences" in progress.told[0]
    # Plain PEFT: with the adapter, the chosen completions have gained on the rejected ones by as much.
    tokenizer = load_tokenizer(llama)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.path), tmp_path / "out").eval()
    losses = []
    for row in held:
        ids = encode_input(tokenizer, result.spec, row.fields)
        margin = 0.0
        for sign, text in zip((1, -1), row.completions, strict=True):
            answer = encode_completion(tokenizer, text)
            with torch.no_grad():
                after = model(input_ids=torch.tensor([ids + answer])).logits[0].log_softmax(-1)
                with model.disable_adapter():
                    before = model(input_ids=torch.tensor([ids + answer])).logits[0].log_softmax(-1)
            at = torch.arange(len(ids) - 1, len(ids) + len(answer) - 1)
            margin += sign * float((after - before)[at, torch.tensor(answer)].sum())
        losses.append(-float(torch.nn.functional.logsigmoid(torch.tensor(0.1 * margin))))
    assert sum(losses) / len(losses) == pytest.approx(result.best.loss, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2", "bert"])
@pytest.mark.parametrize("lora", [{}, {"rank": 2, "layers": [0, 2], "targets": "all-linear"}])
def test_vectors_are_learnt_and_plain_peft_has_the_same(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    base = tiny_base(tmp_path, family)
    settings = {"steps": 30, "batch_size": 16, "learning_rate": 5e-3, "contrastive_temperature": 0.1, "eval_every": 15}
    held = topics(24, seed=1)
    job = make_job(base, topics(96), held, kind="embedding", training=settings, lora=lora)
    result = train_adapter(job, tmp_path / "out", Recorder())
    assert result.best is not None
    assert result.best.metric == "recall_at_1"
    assert result.best.value > 0.6  # of 24 texts; chance is 1 in 24
    assert (result.spec.kind, result.spec.pooling, result.spec.labels) == ("embedding", "mean", ())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["task_type"], config["layers_to_transform"]) == ("FEATURE_EXTRACTION", None)
    # The last hidden states that PEFT's own loader gives on a plain AutoModel rank the texts as validation did.
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base.path), tmp_path / "out").eval()
    assert not [name for name in model.state_dict() if "modules_to_save" in name]
    vectors = {}
    with torch.no_grad():
        for row in encode_rows(held, result.spec, load_tokenizer(base), base.context_length):
            for each in row.sequences:
                vectors[each.ids] = model(input_ids=torch.tensor([each.ids])).last_hidden_state[0].mean(0)
        rows = encode_rows(held, result.spec, load_tokenizer(base), base.context_length)
        pool = torch.nn.functional.normalize(torch.stack([vectors[k] for k in {e.ids for r in rows for e in r.others}]))
        hits = 0
        for row in rows:
            text, own = (torch.nn.functional.normalize(vectors[each.ids], dim=0) for each in row.sequences[:2])
            hits += int(((pool @ text) > text @ own + 1e-6).sum()) == 0
    assert hits / len(rows) == pytest.approx(result.best.value)


@pytest.mark.parametrize(("kind", "rows"), [("preference", preferences(24)), ("embedding", topics(24))])
def test_equal_jobs_give_equal_bytes(tmp_path: Path, llama: Any, kind: str, rows: list[Example]) -> None:
    digests = set()
    for run in range(2):
        settings = {"steps": 4, "batch_size": 8}
        job = make_job(llama, rows, rows[:8], kind=kind, training=settings, lora={"dropout": 0.2})
        train_adapter(job, tmp_path / str(run), Recorder())
        digests.add(digest_folder(tmp_path / str(run)))
    assert len(digests) == 1


def test_what_cannot_be_learnt_is_refused(tmp_path: Path, llama: Any) -> None:
    same = [example(f"f:{n}", text=f"t{n}", positive="x") for n in range(4)]
    with pytest.raises(DataError, match="same positive, 'x'"):
        train_adapter(make_job(llama, same, kind="embedding"), tmp_path / "out", Recorder())
    for kind in ("preference", "embedding"):
        with pytest.raises(DataError, match="no training rows"):
            train_adapter(make_job(llama, [], kind=kind), tmp_path / "out", Recorder())


def test_class_weights_let_a_rare_label_be_learnt_as_well(tmp_path: Path, llama: Any) -> None:
    # The texts say nothing, so without weights the frequent label always wins; balanced, both are as likely.
    rows = [example(f"f:{n}", text="xy"[n % 2] * 3, label="red" if n % 8 == 0 else "blue") for n in range(64)]
    losses = {}
    for weights in (None, "balanced"):
        settings = {"steps": 40, "batch_size": 16, "learning_rate": 5e-3, "class_weights": weights}
        held = [example("v:1", text="xxx", label="red")]
        result = train_adapter(make_job(llama, rows, held, training=settings), tmp_path / str(weights), Recorder())
        losses[weights] = result.history[-1].loss
    # Of the texts xxx, 8 of 32 are red; balanced, red and blue of them weigh 32 and 13.7.
    assert losses[None] == pytest.approx(1.386, abs=0.3)
    assert losses["balanced"] == pytest.approx(0.357, abs=0.2)
