"""Adapter folders and cards for registry tests: real layout, no weights anybody needs."""

from __future__ import annotations

import json
from pathlib import Path

from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.registry.card import Card

FINGERPRINT = "sha256:" + "b" * 64
OTHER_FINGERPRINT = "sha256:" + "c" * 64


def make_spec(kind: str = "classification", fingerprint: str = FINGERPRINT, **changes: object) -> TaskSpec:
    labels = ("billing", "shipping", "other") if kind in ("classification", "multilabel") else ()
    pooling = {"generation": None, "embedding": "mean"}.get(kind, "last")
    given = {"labels": labels, "prompt": PromptSpec(), "pooling": pooling, **changes}
    return TaskSpec(kind=kind, base_fingerprint=fingerprint, max_length=128, **given)


def make_folder(folder: Path, weights: bytes = b"weights", **spec: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}) + "\n")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "task.json").write_text(make_spec(**spec).to_json())
    return folder


def make_card(fingerprint: str = FINGERPRINT, **changes: object) -> Card:
    base = {"name": "tiny", "public_id": "org/tiny", "fingerprint": fingerprint, "derived_from": None}
    return Card(**{"kind": "classification", "base": base, **changes})


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Return every path below `root` with its bytes, locks left out: those say nothing about what readers see."""
    found = sorted(root.rglob("*"))
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in found if ".locks" not in p.parts}
