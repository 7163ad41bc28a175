"""A registry of random adapters on a tiny base, for servers that answer with the real engine."""

from __future__ import annotations

from pathlib import Path

from adapterhub.base.source import Base, open_base
from adapterhub.data.output import Output
from adapterhub.data.task import Calibration, PromptSpec, TaskSpec
from adapterhub.registry.card import Card
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published
from tests.adapters import make_adapter
from tests.tiny import CHAT_TEMPLATE, make_tiny_base

LABELS = ("calm", "cross", "glad")


def make_base(folder: Path, seed: int = 0) -> Base:
    return open_base(str(make_tiny_base(folder, seed=seed)))


def publish(
    registry: Registry,
    base: Base,
    task: str,
    scratch: Path,
    *,
    kind: str = "generation",
    seed: int = 0,
    calibration: Calibration | None = None,
    rank: int = 4,
    rslora: bool = False,
    output: Output | None = None,
) -> Published:
    """Publish a random adapter; another seed is another version, and so is another calibration or output."""
    labelled = kind in ("classification", "multilabel")
    folder = make_adapter(
        base.path,
        scratch / f"{task}-{seed}",
        "llama",
        labels=len(LABELS) if labelled else None,
        rank=rank,
        seed=seed,
        rslora=rslora,
        vectors=kind == "embedding",
    )
    chat = PromptSpec("chat", system="Be brief.", template="Q: {prompt}", chat_template=CHAT_TEMPLATE)
    spec = TaskSpec(
        kind,  # type: ignore[arg-type]
        base.fingerprint,
        256,
        LABELS if labelled else (),
        chat if kind == "generation" else PromptSpec(),
        "mean" if kind == "embedding" else "last" if labelled else None,
        calibration=calibration,
        output=output,
    )
    (folder / "task.json").write_text(spec.to_json())
    card = Card(
        kind, {"name": base.name, "public_id": base.public_id, "fingerprint": base.fingerprint, "derived_from": None}
    )
    return registry.publish(task, folder, card)
