"""Where a version came from: the parts of a card that are read off the surroundings, and nothing of the machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from adapterhub.data.example import Example

PACKAGES = ("adapterhub", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return name → installed version, without those that are not installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out at `folder`, or None where there is no git or no commit."""
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def split_record(source: str, examples: Iterable[Example]) -> dict[str, object]:
    """Return what a card says of one split: name (no path), rows, and a sha256 of all that training sees of them.

    That is the JSON of [id, fields, weight, probs], a row a line, in sorted order: equal rows in another order, or in
    another kind of file, have an equal hash.
    """
    ordered = sorted(_canonical(example) for example in examples)
    name = source if source.startswith("hf:") else Path(source).name
    digest = hashlib.sha256("".join(f"{each}\n" for each in ordered).encode("ascii")).hexdigest()
    return {"name": name, "rows": len(ordered), "sha256": digest}


def _canonical(example: Example) -> str:
    content = [example.id, example.fields, example.weight, example.probs]
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
