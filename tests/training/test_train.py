"""Whole trainings of tiny bases: they learn, they repeat exactly, and plain PEFT loads what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adapterhub.base.load import load_tokenizer
from adapterhub.data.task import TaskSpec
from adapterhub.data.tokens import encode_input
from adapterhub.errors import ConfigError, DataError, TrainingError, UsageError
from adapterhub.registry.bundle import digest_folder
from adapterhub.training.general import build_learner
from adapterhub.training.job import StepReport
from adapterhub.training.run import make_optimizer
from adapterhub.training.train import Trained, Trainer, train_adapter
from tests.training.jobs import COLOURS, Recorder, example, make_job, tiny_base, toy_rows

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # asked by PEFT
QUICK = {"epochs": 4.0, "batch_size": 16, "learning_rate": 5e-3}
FILES = {"adapter_config.json", "adapter_model.safetensors", "task.json"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2", "bert"])
def test_a_toy_task_is_learnt(tmp_path: Path, family: str) -> None:
    base = tiny_base(tmp_path, family)
    job = make_job(base, toy_rows(96), toy_rows(40, seed=1), training=QUICK)
    progress = Recorder()
    result = train_adapter(job, tmp_path / "out", progress)
    assert result.best is not None
    assert result.best.metric == "accuracy"
    assert result.best.value > 0.9
    assert result.steps == len(progress.steps) == 24
    assert [e.step for e, _ in progress.evaluations] == [6, 12, 18, 24]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert result.spec.pooling == ("pooler" if family == "bert" else "last")
    assert TaskSpec.from_json((tmp_path / "out" / "task.json").read_text()) == result.spec
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.public_id
    assert str(tmp_path) not in json.dumps(config)


def test_multilabel_is_learnt(tmp_path: Path, llama: Any) -> None:
    rows = [
        example(
            f"f:{i}", text="x" * (i % 2 + 1) * bool(i & 1) + "y" * 2 * bool(i & 2) + "-" * (i % 5 + 1), labels=labels
        )
        for i in range(96)
        for labels in [[name for bit, name in ((1, "red"), (2, "blue")) if i & bit]]
    ]
    job = make_job(llama, rows[:64], rows[64:], kind="multilabel", training={**QUICK, "epochs": 12.0})
    result = train_adapter(job, tmp_path / "out", Recorder())
    assert result.best is not None
    assert result.best.metric == "micro_f1"
    assert result.best.value > 0.9


def train_to_answer(folder: Path, base: Any, style: str, **changes: Any) -> str:
    """Train the answer "ok!" to any prompt; return what plain PEFT then writes, greedily, up to EOS."""
    letters = "abcdefghij"
    rows = [example(f"f:{i}", prompt=letters[i % 10] * (i % 4 + 1), completion="ok!") for i in range(40)]
    settings = {"steps": 60, "batch_size": 8, "learning_rate": 2e-2}
    job = make_job(base, rows[:32], rows[32:], kind="generation", style=style, training=settings, **changes)
    result = train_adapter(job, folder, Recorder())
    assert result.best is not None
    assert result.best.metric == "loss"
    # A random head of this size cannot be surer: its logits stay below 5, and 259 tokens compete.
    assert result.best.loss < 1.6
    tokenizer = load_tokenizer(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), folder).eval()
    ids = encode_input(tokenizer, result.spec, {"prompt": "zz"})
    for _ in range(8):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids))


def test_a_completion_and_its_end_are_learnt(tmp_path: Path, llama: Any) -> None:
    assert train_to_answer(tmp_path / "out", llama, "plain") == "zzok!<|end|>"


def test_a_completion_is_learnt_through_the_chat_template(tmp_path: Path) -> None:
    # The tiny chat template ends each turn with the token that is EOS too.
    written = train_to_answer(tmp_path / "out", tiny_base(tmp_path, "qwen2"), "chat")
    assert written == "<|start|>user\nzz<|end|>\n<|start|>assistant\nok!<|end|>"


def test_the_end_is_learnt_where_the_pad_token_is_eos(tmp_path: Path, llama: Any) -> None:
    assert train_to_answer(tmp_path / "out", llama, "plain", pad_token="<|end|>") == "zzok!<|end|>"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2", "bert"])
@pytest.mark.parametrize("lora", [{"rank": 8}, {"rank": 2, "variant": "rslora", "layers": [0, 2], "dropout": 0.2}])
def test_plain_peft_loads_the_folder_and_answers_as_at_the_last_evaluation(
    tmp_path: Path, family: str, lora: dict[str, Any]
) -> None:
    base = tiny_base(tmp_path, family)
    validation = toy_rows(12, seed=5)
    job = make_job(base, toy_rows(48), validation, training={**QUICK, "steps": 4, "epochs": None}, lora=lora)
    result = train_adapter(job, tmp_path / "out", Recorder())
    plain = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=2)
    model = PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    tokenizer, loss = load_tokenizer(base), 0.0
    for row in validation:
        ids = encode_input(tokenizer, result.spec, row.fields)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits
        loss += float(torch.nn.functional.cross_entropy(logits, torch.tensor([COLOURS.index(row.label or "")])))
    assert result.best is not None
    assert loss / len(validation) == pytest.approx(result.best.loss, rel=1e-4)


def test_equal_jobs_give_equal_bytes_and_another_seed_others(tmp_path: Path, llama: Any) -> None:
    digests = []
    for run, seed in enumerate((3, 3, 4)):
        torch.manual_seed(run)  # Whatever state the caller's generator is in.
        torch.rand(run + 1)
        settings = {**QUICK, "steps": 6, "epochs": None, "seed": seed}
        job = make_job(llama, toy_rows(40), toy_rows(10, seed=1), training=settings, lora={"dropout": 0.3})
        before = torch.get_rng_state()
        train_adapter(job, tmp_path / str(run), Recorder())
        assert torch.equal(torch.get_rng_state(), before)
        digests.append(digest_folder(tmp_path / str(run)))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_ctrl_c_leaves_no_folder_behind(tmp_path: Path, llama: Any) -> None:
    class Interrupting(Recorder):
        def step(self, task: str, report: StepReport) -> None:
            super().step(task, report)
            if report.step == 3:
                raise KeyboardInterrupt

    progress = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        train_adapter(make_job(llama, toy_rows(96), training=QUICK), tmp_path / "out", progress)
    assert progress.told[-1] == "end"
    assert not (tmp_path / "out").exists()


def test_a_loss_that_explodes_is_reported_with_advice(tmp_path: Path, llama: Any) -> None:
    job = make_job(llama, toy_rows(96), toy_rows(4), training={**QUICK, "learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(TrainingError, match=r"lower training\.learning_rate"):
        train_adapter(job, tmp_path / "out", Recorder())
    assert not (tmp_path / "out").exists()


def test_early_stopping_ends_training_and_keeps_the_best(tmp_path: Path, llama: Any) -> None:
    # Validation contradicts training, so what is learnt only makes it worse.
    wrong = [example(f"v:{i}", text=row.text, label=COLOURS[row.label == "blue"]) for i, row in enumerate(toy_rows(20))]
    settings = {**QUICK, "eval_every": 2, "early_stopping": 2, "epochs": 50.0}
    progress = Recorder()
    result = train_adapter(make_job(llama, toy_rows(96), wrong, training=settings), tmp_path / "out", progress)
    assert result.stopped_early
    assert result.best is not None
    assert result.steps == result.best.step + 4 < 300
    assert [e.step for e, _ in progress.evaluations] == list(range(2, result.steps + 1, 2))
    assert result.history == tuple(e for e, _ in progress.evaluations)


def test_without_validation_it_trains_to_the_end(tmp_path: Path, llama: Any) -> None:
    result = train_adapter(make_job(llama, toy_rows(32), training=QUICK), tmp_path / "out", Recorder())
    assert result.steps == 8
    assert result.best is None
    assert result.history == ()


def test_speed_counts_rows_and_tokens_without_padding(tmp_path: Path, llama: Any) -> None:
    rows = toy_rows(33)
    job = make_job(llama, rows, training={**QUICK, "epochs": 2.0})
    result = train_adapter(job, tmp_path / "out", Recorder())
    tokens = sum(len(row.text) for row in rows)
    assert result.tokens_per_second / result.examples_per_second == pytest.approx(tokens / 33)
    assert result.examples_per_second > 0
    assert result.seconds >= 66 / result.examples_per_second
    assert result.precision in ("float32", "bfloat16")
    assert result.peak_memory_bytes > 50_000_000


def test_one_row_too_long_stops_before_the_base_is_loaded(tmp_path: Path, llama: Any) -> None:
    rows = [*toy_rows(8), example("toy.jsonl:9", text="x" * 40, label="red")]
    progress = Recorder()
    with pytest.raises(DataError, match=r"1 of 9 rows .* toy\.jsonl:9 \(40 tokens\); set max_length to 40"):
        train_adapter(make_job(llama, rows, max_length=20), tmp_path / "out", progress)
    assert progress.told == []


def test_rows_that_teach_nothing_are_refused(tmp_path: Path, llama: Any) -> None:
    with pytest.raises(DataError, match="no training rows"):
        train_adapter(make_job(llama, []), tmp_path / "out", Recorder())
    same = [row for row in toy_rows(8) if row.label == "red"]
    with pytest.raises(DataError, match=r"all 4 training rows have the same answer, 'red'"):
        train_adapter(make_job(llama, same), tmp_path / "out", Recorder())
    nothing = [example(f"f:{i}", text="abc", labels=[]) for i in range(3)]
    with pytest.raises(DataError, match=r"all 3 training rows have the same answer, no label"):
        train_adapter(make_job(llama, nothing, kind="multilabel"), tmp_path / "out", Recorder())


def test_a_label_that_only_validation_has_is_named(tmp_path: Path, llama: Any) -> None:
    wrong = [example("val.jsonl:3", text="abc", label="green")]
    with pytest.raises(DataError, match=r"val\.jsonl:3: label 'green'"):
        train_adapter(make_job(llama, toy_rows(8), wrong), tmp_path / "out", Recorder())


def test_targets_the_base_does_not_have_are_refused(tmp_path: Path, llama: Any) -> None:
    with pytest.raises(ConfigError, match=r"'c_attn' .* mlp\.down_proj"):
        train_adapter(make_job(llama, toy_rows(8), lora={"targets": ["c_attn"]}), tmp_path / "out", Recorder())


def test_an_embedding_is_refused_several_processes(tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    rows = [example(f"f:{n}", text=f"t{n}", positive=f"p{n}") for n in range(8)]
    with pytest.raises(UsageError, match=r"an embedding .* one process; .*not through torchrun"):
        train_adapter(make_job(llama, rows, kind="embedding"), tmp_path / "out", Recorder())


def test_checkpoints_are_forgotten_and_journals_stay(tmp_path: Path, llama: Any) -> None:
    trainer = Trainer(llama)
    (outcome,) = trainer.train([make_job(llama, toy_rows(8), training={"steps": 2})], Recorder(), tmp_path / "run")
    assert isinstance(outcome, Trained)
    (tmp_path / "run" / ".all.checkpoint.safetensors-77").write_bytes(b"cut off")
    assert (tmp_path / "run" / "all.checkpoint.safetensors").exists()
    trainer.forget(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == ["loss.png", "toy", "train.jsonl"]


def test_weight_decay_spares_biases(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    job = make_job(base, toy_rows(4), training={"weight_decay": 0.1})
    learner = build_learner(job, 0, 16, torch.device("cpu"))
    groups = make_optimizer(learner.parameters(), job.recipe.training).groups
    decayed = {id(p) for group in groups if group.weight_decay == 0.1 for p in group.params}
    spared = {id(p) for group in groups if group.weight_decay == 0.0 for p in group.params}
    names = {name: id(p) for name, p in learner.parameters().items()}
    assert {name for name, key in names.items() if key in spared} == {
        "base_model.model.classifier.modules_to_save.default.bias"
    }
    assert decayed | spared == set(names.values())
    assert not decayed & spared
