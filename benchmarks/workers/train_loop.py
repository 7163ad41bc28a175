"""Worker: a loop written by hand around a PEFT model; batches come as they are to be run, and are padded here.

A frozen base in any dtype, adapters and head in float32, any attention, no cache of keys and values, fused AdamW.
`--labels` makes a classifier, without it a decoder learns its answers: what comes before `start` has no label.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from line import peak_memory_bytes, serve, take_stdout

answers = take_stdout()

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402

NO_LABEL = -100  # what transformers' losses leave out


def make_model(options: argparse.Namespace, pad_token_id: int) -> Any:
    settings: dict[str, Any] = {"dtype": getattr(torch, options.dtype), "attn_implementation": options.attention}
    if options.labels:
        kind, settings = AutoModelForSequenceClassification, {**settings, "num_labels": options.labels}
    else:
        kind = AutoModelForCausalLM
    plain = kind.from_pretrained(options.model, pad_token_id=pad_token_id, **settings)
    plain.config.use_cache = False
    task_type = "SEQ_CLS" if options.labels else "CAUSAL_LM"
    config = LoraConfig(task_type=task_type, r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear")
    model = get_peft_model(plain, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if options.labels:
        plain.score.register_forward_pre_hook(_in_float32)
    return model


def _in_float32(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in given)


def collate(rows: list[dict[str, Any]], pad: int, *, classify: bool) -> dict[str, Tensor]:
    """Return [rows, longest] ids and mask, padded on the right, and labels: one a row, or one a token."""
    longest = max(len(row["ids"]) for row in rows)
    short = [longest - len(row["ids"]) for row in rows]
    pairs = list(zip(rows, short, strict=True))
    if classify:
        labels = [row["label"] for row in rows]
    else:
        labels = [[NO_LABEL] * r["start"] + r["ids"][r["start"] :] + [NO_LABEL] * n for r, n in pairs]
    return {
        "input_ids": torch.tensor([row["ids"] + [pad] * n for row, n in pairs]),
        "attention_mask": torch.tensor([[1] * len(row["ids"]) + [0] * n for row, n in pairs]),
        "labels": torch.tensor(labels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=0, help="0: the base writes")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--attention", choices=["eager", "sdpa"], required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    pad = AutoTokenizer.from_pretrained(options.model).pad_token_id
    model = make_model(options, pad).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, weight_decay=0.0, fused=True)

    def learn(rows: list[dict[str, Any]]) -> Tensor:
        loss: Tensor = model(**collate(rows, pad, classify=options.labels > 0)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        batches = command["batches"]
        started = time.perf_counter()
        losses = [float(learn(rows)) for rows in batches]
        return {
            "seconds": time.perf_counter() - started,
            "examples": sum(map(len, batches)),
            "tokens": sum(len(row["ids"]) for rows in batches for row in rows),
            "loss": sum(losses) / len(losses),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    versions = f"PEFT {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    serve(answers, answer, {"engine": versions, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
