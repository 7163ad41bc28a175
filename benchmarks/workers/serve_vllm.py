"""Worker: vLLM-CPU with LoRA, offline, in vLLM's own environment. Threads come from the environment (see peers.py).

No prefix cache, no text is made of the tokens, and a step takes all prompts of a round, so that the time until every
row has its first token is that of the prompts alone.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from line import serve, take_stdout

answers = take_stdout()
# The engine in this process: nothing else may compute, or wait by spinning, beside it.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ["VLLM_NO_USAGE_STATS"] = "1"

import torch  # noqa: E402
import vllm  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--slots", type=int, default=8, help="max_loras: adapters in one batch")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=16)
    options = parser.parse_args()
    llm = LLM(
        str(options.model),
        dtype=options.dtype,
        enforce_eager=True,
        enable_lora=True,
        max_loras=options.slots,
        max_lora_rank=options.rank,
        max_cpu_loras=max(len(options.adapters), options.slots),
        max_num_seqs=options.rows,
        max_model_len=512,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )
    requests = [LoRARequest(folder.name, i + 1, str(folder)) for i, folder in enumerate(options.adapters)]

    engine = llm.llm_engine
    rounds = iter(range(1 << 30))

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        rows, mark = command["rows"], next(rounds)
        started = time.perf_counter()
        for i, row in enumerate(rows):
            sampling = SamplingParams(
                temperature=0.0,
                max_tokens=row["max_tokens"],
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            prompt = {"prompt_token_ids": row["tokens"]}
            engine.add_request(f"{mark}-{i}", prompt, sampling, lora_request=requests[row["adapter"]])
        said: list[list[int]] = [[] for _ in rows]
        prefill, before = 0.0, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                said[int(output.request_id.partition("-")[2])] += output.outputs[0].token_ids
            if not prefill and all(said):
                prefill, before = time.perf_counter() - started, sum(map(len, said))
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "prefill_seconds": prefill,
            "decode_seconds": seconds - prefill,
            "decode_tokens": sum(map(len, said)) - before,
            "tokens": said,
        }

    about = {"engine": f"vLLM-CPU {vllm.__version__}, torch {torch.__version__}", "threads": torch.get_num_threads()}
    serve(answers, answer, about)


if __name__ == "__main__":
    main()
