"""A registry to serve from: random adapters of every kind, damaged ones, and changes to it while it is served."""

from __future__ import annotations

import itertools
import math
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from workload import Q_AND_V, linear_shapes

from adapterhub.base.record import Base
from adapterhub.data.task import Kind, PromptSpec, TaskSpec
from adapterhub.lora.config import AdapterConfig, TaskType
from adapterhub.lora.files import PREFIX, WEIGHTS, write_adapter
from adapterhub.registry.card import Card
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published

LABELS = ("calm", "cross", "glad")
TYPES: dict[Kind, TaskType] = {
    "generation": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "embedding": "FEATURE_EXTRACTION",
}
POOLINGS = {"generation": None, "classification": "last", "embedding": "mean"}
DAMAGED = ("changed", "nan", "huge")
# Numbers stay finite until bfloat16 or float32 overflows in the products of a forward.
HUGE = 3e18


@dataclass(frozen=True)
class Change:
    """What a ref came to mean, at some moment between two times of time.perf_counter()."""

    before: float
    after: float
    digest: str


@dataclass
class World:
    """A base, its registry, and what refs meant when. `writers` are the generation tasks; their alias `prod` moves."""

    base: Base
    registry: Registry
    scratch: Path
    rank: int
    writers: list[str] = field(default_factory=list)
    labels: str = "labels"
    vectors: str = "vectors"
    changes: dict[str, list[Change]] = field(default_factory=dict)
    _seeds: itertools.count[int] = field(default_factory=itertools.count)

    def publish(self, task: str, kind: Kind = "generation") -> Published:
        """Publish a new version with random weights, and note what `task@latest` means from now on."""
        folder = self._adapter(kind)
        begun = time.perf_counter()
        made = self._put(task, folder, kind)
        self._note(f"{task}@latest", begun, made.digest)
        return made

    def promote(self, task: str, draw: random.Random) -> None:
        """Point `task@prod`, and so `task` itself, at any of its versions."""
        version = draw.choice(self.registry.versions(task))
        begun = time.perf_counter()
        self.registry.alias(task, "prod", version.ref)
        self._note(f"{task}@prod", begun, version.digest)

    def meant(self, ref: str, begun: float, ended: float) -> set[str]:
        """Return the digests that a ref may have meant at some moment of an interval."""
        if "@" not in ref:
            ref = f"{ref}@prod" if f"{ref}@prod" in self.changes else f"{ref}@latest"
        found, last = set(), None
        for change in self.changes[ref]:
            if change.after <= begun:
                last = change.digest
            elif change.before <= ended:
                found.add(change.digest)
        return found | ({last} if last is not None else set())

    def damage(self) -> None:
        """Publish adapters that no answer may ever come from: changed later, not finite, finite but overflowing."""
        published = self.publish("changed")
        path = published.path / WEIGHTS
        data = bytearray(path.read_bytes())
        data[-1] ^= 0x5A
        path.write_bytes(data)
        for task, value in (("nan", math.nan), ("huge", HUGE)):
            folder = self._adapter("generation")
            tensors = load_file(folder / WEIGHTS)
            for name in list(tensors) if task == "huge" else [min(tensors)]:
                tensors[name] = torch.full_like(tensors[name], value)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
            self._put(task, folder, "generation")

    def _put(self, task: str, folder: Path, kind: Kind) -> Published:
        base = self.base
        origin = {"name": base.name, "public_id": base.public_id, "fingerprint": base.fingerprint, "derived_from": None}
        return self.registry.publish(task, folder, Card(kind, origin))

    def _adapter(self, kind: Kind) -> Path:
        folder = self.scratch / "staged"
        shutil.rmtree(folder, ignore_errors=True)
        random_adapter(folder, self.base, kind, next(self._seeds), self.rank)
        labels = LABELS if kind == "classification" else ()
        prompt = PromptSpec(template="Text: {prompt}\nAnswer:") if kind == "generation" else PromptSpec()
        length = min(256, self.base.context_length)
        spec = TaskSpec(kind, self.base.fingerprint, length, labels, prompt, POOLINGS[kind])  # type: ignore[arg-type]
        (folder / "task.json").write_text(spec.to_json())
        return folder

    def _note(self, ref: str, begun: float, digest: str) -> None:
        self.changes.setdefault(ref, []).append(Change(begun, time.perf_counter(), digest))


def random_adapter(
    folder: Path, base: Base, kind: Kind, seed: int, rank: int, targets: Sequence[str] = Q_AND_V
) -> None:
    """Write a PEFT folder with random weights large enough to change what the base says, and a random head."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*size: int, scale: float) -> Tensor:
        return torch.randn(*size, generator=draw) * scale

    tensors = {}
    for name, (out_features, in_features) in linear_shapes(base).items():
        if name.endswith(tuple(targets)):
            # The model of a FEATURE_EXTRACTION adapter is the backbone itself.
            key = PREFIX + (name.removeprefix("model.") if kind == "embedding" else name)
            tensors[f"{key}.lora_A.weight"] = noise(rank, in_features, scale=in_features**-0.5).bfloat16()
            tensors[f"{key}.lora_B.weight"] = noise(out_features, rank, scale=0.3 * rank**-0.5).bfloat16()
    saved = ()
    if kind == "classification":
        hidden = next(inside for name, (_, inside) in linear_shapes(base).items() if name.endswith("q_proj"))
        tensors[f"{PREFIX}score.weight"] = noise(len(LABELS), hidden, scale=hidden**-0.5)
        saved = ("score",)
    config = AdapterConfig(base.public_id, TYPES[kind], rank, 2 * rank, tuple(targets), modules_to_save=saved)
    write_adapter(folder, config, tensors)


def make_world(root: Path, base: Base, *, writers: int, rank: int = 8) -> World:
    """Lay out a registry: `writers` generation tasks of two versions each, labels, vectors, and damaged adapters."""
    world = World(base, Registry(root / "registry"), root, rank)
    for number in range(writers):
        task = f"writer-{number}"
        world.publish(task)
        world.publish(task)
        world.promote(task, random.Random(number))
        world.writers.append(task)
    world.publish(world.labels, "classification")
    world.publish(world.vectors, "embedding")
    world.damage()
    return world
