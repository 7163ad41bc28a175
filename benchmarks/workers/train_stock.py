"""Worker: what people type, transformers' Trainer on a PEFT classifier, or on all weights (`--rank 0`).

The default attention, padding to the longest row of a batch, no bucketing, the Trainer's own optimiser. It goes on
from round to round with the same weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from line import peak_memory_bytes, serve, take_stdout

answers = take_stdout()

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Clock(TrainerCallback):
    """Notes when training begins and when its last step is done."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Stop, unless another step comes."""
        self.ended = time.perf_counter()


def make_model(options: argparse.Namespace, pad_token_id: int) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=options.labels, dtype=torch.float32, pad_token_id=pad_token_id
    )
    if not options.rank:
        return model
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules="all-linear",
    )
    return get_peft_model(model, config)


def as_dataset(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"input_ids": r["ids"], "attention_mask": [1] * len(r["ids"]), "label": r["label"]} for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--labels", type=int, required=True)
    parser.add_argument("--rank", type=int, default=8, help="0: all weights learn, without LoRA")
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--dropout", type=float, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    transformers.set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = make_model(options, tokenizer.pad_token_id)

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        rows, clock = command["rows"], Clock()
        with tempfile.TemporaryDirectory() as scratch:
            settings = {"output_dir": scratch, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
            arguments = TrainingArguments(**settings, disable_tqdm=True, seed=options.seed, **command["settings"])
            collate = DataCollatorWithPadding(tokenizer)
            trainer = Trainer(model, arguments, collate, as_dataset(rows), callbacks=[clock])
            done = trainer.train()
            said = {
                "seconds": clock.ended - clock.started,
                "examples": round(done.global_step and trainer.state.epoch * len(rows)),
                "tokens": round(trainer.state.epoch * sum(len(row["ids"]) for row in rows)),
                "loss": done.training_loss,
                "peak_memory_bytes": peak_memory_bytes(),
            }
            if command.get("predict"):
                said["predicted"] = trainer.predict(as_dataset(command["predict"])).predictions.argmax(-1).tolist()
            if command.get("save"):
                trainer.save_model(command["save"])
        return said

    versions = f"PEFT {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    serve(answers, answer, {"engine": versions, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
