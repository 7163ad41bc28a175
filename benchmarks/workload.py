"""What the benchmarks of the engine share: random adapters as PEFT folders, prompts, and how results are printed."""

from __future__ import annotations

import json
import os
import platform
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from adapterhub.base.record import Base
from adapterhub.data.task import TaskSpec
from adapterhub.lora.config import AdapterConfig
from adapterhub.lora.files import PREFIX, write_adapter
from adapterhub.registry.card import Card
from adapterhub.registry.store import Registry

BASE = "smollm2-135m-instruct"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
Q_AND_V = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Ask:
    """One request of a workload: prompt tokens, the number of its adapter, and how many tokens are wanted."""

    tokens: tuple[int, ...]
    adapter: int
    max_tokens: int

    def to_record(self) -> dict[str, object]:
        """Return what a worker is told."""
        return {"tokens": self.tokens, "adapter": self.adapter, "max_tokens": self.max_tokens}


def linear_shapes(base: Base) -> dict[str, tuple[int, int]]:
    """Return (out, in) features of every linear layer of a Llama-like base by its name, from its config alone."""
    config = json.loads((base.path / "config.json").read_text())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    kv = config["num_key_value_heads"] * head_dim
    one = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    return {f"model.layers.{layer}.{name}": shape for layer in layers for name, shape in one.items()}


def write_random_adapter(
    folder: Path, base: Base, seed: int, rank: int, targets: Sequence[str], dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write a PEFT folder with random weights and return it. An update is about a tenth of the base's weights in size.

    Speed does not depend on the values, but all-zero or tiny updates would hide an engine that leaves them out.
    """
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out_features, in_features) in linear_shapes(base).items():
        if name.endswith(tuple(targets)):
            a = torch.randn(rank, in_features, generator=draw) * in_features**-0.5
            b = torch.randn(out_features, rank, generator=draw) * 0.1 * rank**-0.5
            tensors[f"{PREFIX}{name}.lora_A.weight"] = a.to(dtype)
            tensors[f"{PREFIX}{name}.lora_B.weight"] = b.to(dtype)
    write_adapter(folder, AdapterConfig(base.public_id, "CAUSAL_LM", rank, 2 * rank, tuple(targets)), tensors)
    return folder


def publish_random_tasks(
    registry: Registry,
    base: Base,
    count: int,
    rank: int,
    targets: Sequence[str],
    *,
    name: str = "task",
    dtype: torch.dtype = torch.bfloat16,
) -> list[str]:
    """Publish `count` generation tasks with random adapters, and return their refs."""
    origin = {"name": base.name, "public_id": base.public_id, "fingerprint": base.fingerprint, "derived_from": None}
    spec = TaskSpec("generation", base.fingerprint, base.context_length).to_json()
    refs = [f"{name}-{i}" for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        for i, ref in enumerate(refs):
            staged = write_random_adapter(Path(folder) / "staged", base, i, rank, targets, dtype)
            (staged / "task.json").write_text(spec)
            registry.publish(ref, staged, Card("generation", origin))
    return refs


def random_prompt(draw: random.Random, length: int, vocabulary: int = 49152) -> tuple[int, ...]:
    """Return token ids without the special ones at the start of the vocabulary."""
    return tuple(draw.randrange(100, vocabulary) for _ in range(length))


def machine() -> str:
    """Return one line on the machine and the versions that matter, for the top of a table."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {cpu.split(':')[1].strip()} ({', '.join(wide)}), "
        f"{len(os.sched_getaffinity(0))} cores to use, {memory:.0f} GB; Python {platform.python_version()}, {packages}"
    )


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)
