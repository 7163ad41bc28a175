"""Worker: PEFT on transformers, adapters mixed in one batch (`adapter_names`) or batches an adapter in turn.

Batches are static, as `generate` has them: `at_once` requests, padded on the left, run until the longest is done.
Adapters that are not loaded are loaded when their batch comes, and the longest unused ones deleted above `--keep`.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from itertools import groupby
from pathlib import Path
from typing import Any

from line import serve, take_stdout

answers = take_stdout()

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList  # noqa: E402


class Clock(StoppingCriteria):
    """Notes when the first token of a batch is out, and stops nothing."""

    def __init__(self) -> None:
        self.first = 0.0

    def __call__(self, input_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        """Return that no row is done."""
        self.first = self.first or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Served:
    """One model with its adapters."""

    def __init__(self, model: Path, folders: list[Path], dtype: torch.dtype, keep: int) -> None:
        self.folders, self.keep = folders, keep
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        # Adapters in the base's dtype: float32 ones beside a bf16 base would cost a cast a layer.
        self.model = PeftModel.from_pretrained(plain, folders[0], adapter_name="a0", autocast_adapter_dtype=False)
        self.model.eval()
        self.model.generation_config.eos_token_id = None
        self.loaded: OrderedDict[int, None] = OrderedDict({0: None})
        self.loading_seconds = 0.0

    def need(self, adapters: set[int]) -> None:
        """Have these adapters loaded."""
        started = time.perf_counter()
        for adapter in adapters & self.loaded.keys():
            self.loaded.move_to_end(adapter)
        for adapter in sorted(adapters - self.loaded.keys()):
            if len(self.loaded) >= self.keep:
                oldest, _ = self.loaded.popitem(last=False)
                self.model.delete_adapter(f"a{oldest}")
            self.model.load_adapter(self.folders[adapter], adapter_name=f"a{adapter}", autocast_adapter_dtype=False)
            self.loaded[adapter] = None
        self.model.eval()
        self.loading_seconds += time.perf_counter() - started

    def generate(self, rows: list[dict[str, Any]], *, mixed: bool) -> tuple[list[list[int]], float]:
        """Return each row's tokens, and when the first ones were out."""
        self.need({row["adapter"] for row in rows})
        longest = max(len(row["tokens"]) for row in rows)
        most = max(row["max_tokens"] for row in rows)
        ids = torch.tensor([[2] * (longest - len(row["tokens"])) + row["tokens"] for row in rows])
        mask = torch.tensor([[0] * (longest - len(row["tokens"])) + [1] * len(row["tokens"]) for row in rows])
        clock = Clock()
        names = {"adapter_names": [f"a{row['adapter']}" for row in rows]} if mixed else {}
        if not mixed:
            self.model.set_adapter(f"a{rows[0]['adapter']}")
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=2,
                stopping_criteria=StoppingCriteriaList([clock]),
                **names,
            )
        tokens = [line[longest : longest + row["max_tokens"]].tolist() for line, row in zip(out, rows, strict=True)]
        return tokens, clock.first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--keep", type=int, default=8, help="adapters in memory")
    parser.add_argument("--turns", action="store_true", help="a batch an adapter, in turn, not mixed")
    options = parser.parse_args()
    served = Served(options.model, options.adapters, getattr(torch, options.dtype), options.keep)

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        if command.get("threads"):
            torch.set_num_threads(command["threads"])
        rows, at_once = command["rows"], command["at_once"]
        served.loading_seconds = 0.0
        said: dict[int, list[int]] = {}
        started = time.perf_counter()
        prefill, before = 0.0, started
        for low in range(0, len(rows), at_once):
            batch = list(enumerate(rows))[low : low + at_once]
            if options.turns:
                batch.sort(key=lambda each: each[1]["adapter"])
                parts = [list(part) for _, part in groupby(batch, key=lambda each: each[1]["adapter"])]
            else:
                parts = [batch]
            for part in parts:
                tokens, first = served.generate([row for _, row in part], mixed=not options.turns)
                said |= {index: each for (index, _), each in zip(part, tokens, strict=True)}
                prefill, before = prefill + first - before, time.perf_counter()
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "prefill_seconds": prefill,
            "decode_seconds": seconds - prefill,
            "decode_tokens": sum(len(tokens) - 1 for tokens in said.values()),
            "loading_seconds": served.loading_seconds,
            "tokens": [said[index] for index in range(len(rows))],
        }

    versions = f"PEFT {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    serve(answers, answer, {"engine": versions, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
