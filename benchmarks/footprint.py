"""N tasks as adapters on one base against N full copies: bytes on disk and in memory.

    python benchmarks/footprint.py [--tasks 1 2 4 8] [--rank 8]

Every case runs in a process of its own and reports the memory it holds after answering with each of its tasks once
(resident set, in MB). Copies are the base with the adapter merged in, saved and loaded as people do today.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

BASE = "smollm2-135m-instruct"
TEXT = "Where is my parcel?"
LABELS = 4


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def make_versions(root: Path, count: int, rank: int) -> list[Path]:
    """Publish `count` random adapters on q and v, and return their folders; weights do not matter here, sizes do."""
    from adapterhub.base.load import load_classifier, load_tokenizer
    from adapterhub.base.source import open_base
    from adapterhub.data.task import TaskSpec
    from adapterhub.lora.config import AdapterConfig
    from adapterhub.lora.files import PREFIX, write_adapter
    from adapterhub.registry.card import Card
    from adapterhub.registry.store import Registry

    base = open_base(BASE)
    model = load_classifier(base, LABELS, False, torch.float32, "sdpa", load_tokenizer(base).pad_token_id)
    config = AdapterConfig(base.public_id, "SEQ_CLS", rank, 16, ("q_proj", "v_proj"), modules_to_save=("score",))
    spec = TaskSpec("classification", base.fingerprint, 512, tuple(f"label {i}" for i in range(LABELS)), pooling="last")
    origin = {"name": base.name, "public_id": base.public_id, "fingerprint": base.fingerprint, "derived_from": None}
    registry = Registry(root / "registry")
    found = []
    for task in range(count):
        torch.manual_seed(task)
        tensors = {f"{PREFIX}score.weight": torch.randn(LABELS, model.config.hidden_size)}
        for name, module in model.named_modules():
            if name.endswith(("q_proj", "v_proj")):
                tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(rank, module.in_features)
                tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(module.out_features, rank) * 0.01
        folder = root / f"adapter-{task}"
        write_adapter(folder, config, tensors)
        (folder / "task.json").write_text(spec.to_json())
        found.append(registry.publish(f"task-{task}", folder, Card("classification", origin)).path)
        shutil.rmtree(folder)
    return found


def answer_with_adapters(root: Path, count: int) -> float:
    from adapterhub import AdapterHub

    with AdapterHub(BASE, root / "registry") as hub:
        for task in range(count):
            hub.predict(f"task-{task}", [TEXT])
        return resident_mb()


def answer_with_copies(root: Path, count: int) -> float:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folders = [root / "copies" / str(task) for task in range(count)]
    models = [AutoModelForSequenceClassification.from_pretrained(f, dtype=torch.float32).eval() for f in folders]
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    with torch.inference_mode():
        for model in models:
            model(**tokenizer(TEXT, return_tensors="pt"))
    return resident_mb()


def save_copies(root: Path, versions: list[Path]) -> None:
    """Merge each adapter into the base and save the whole model in the base's dtype."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from adapterhub.base.source import open_base

    path = open_base(BASE).path
    for task, folder in enumerate(versions):
        plain = AutoModelForSequenceClassification.from_pretrained(path, num_labels=LABELS, dtype=torch.bfloat16)
        target = root / "copies" / str(task)
        PeftModel.from_pretrained(plain, folder).merge_and_unload().save_pretrained(target)
        AutoTokenizer.from_pretrained(path).save_pretrained(target)


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def in_own_process(case: str, root: Path, count: int) -> float:
    command = [sys.executable, __file__, "--case", case, "--root", str(root), "--tasks", str(count)]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def compare(tasks: list[int], rank: int) -> None:
    from adapterhub.base.source import open_base

    base_mb = size_mb(open_base(BASE).path)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        versions = make_versions(root, max(tasks), rank)
        save_copies(root, versions)
        print("| tasks | disk, base + adapters | disk, full copies | memory, adapters | memory, full copies |")
        print("|---|---|---|---|---|")
        for count in tasks:
            adapters = base_mb + sum(size_mb(folder) for folder in versions[:count])
            copies = sum(size_mb(root / "copies" / str(task)) for task in range(count))
            ours, theirs = (in_own_process(case, root, count) for case in ("adapters", "copies"))
            print(f"| {count} | {adapters:.0f} MB | {copies:.0f} MB | {ours:.0f} MB | {theirs:.0f} MB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--case", choices=["adapters", "copies"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is None:
        compare(options.tasks, options.rank)
    else:
        answer = answer_with_adapters if options.case == "adapters" else answer_with_copies
        print(json.dumps(answer(options.root, options.tasks[0])))


if __name__ == "__main__":
    main()
