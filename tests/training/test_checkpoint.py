"""Checkpoints: a training killed at any moment and taken up again ends in the same bytes as one left in peace."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.errors import TrainingError
from adapterhub.registry.bundle import digest_folder
from adapterhub.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from adapterhub.training.journal import LOG, read_lines
from adapterhub.training.run import Snapshot
from tests.tiny import make_tiny_base
from tests.training.driver import Plan, finish, start, told

NAME = "all.checkpoint.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(folder / family, family) for family in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def whole(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Trainings left in peace: both tasks at once on a Llama, each alone, and one on GPT-2."""
    folder = tmp_path_factory.mktemp("whole")
    plans = {
        name: Plan(bases[family], folder / name, folder / name / "out", tasks)
        for name, family, tasks in (
            ("llama", "llama", ("a", "b")),
            ("again", "llama", ("a", "b")),
            ("gpt2", "gpt2", ("a",)),
        )
    }
    assert finish([start(plan) for plan in plans.values()]) == [0, 0, 0]
    return plans


def digests(plan: Plan) -> list[str]:
    return [digest_folder(plan.out / task) for task in plan.tasks]


def lived(plan: Plan, task: str) -> list[dict[str, Any]]:
    """The journal of a task, but for what the clock says."""
    lines = read_lines(plan.folder / task / LOG)
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def test_equal_trainings_have_equal_digests(whole: dict[str, Plan]) -> None:
    assert digests(whole["llama"]) == digests(whole["again"])


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("llama", [("step", 1)]),  # before there is a checkpoint
        ("llama", [("step", 7)]),
        ("llama", [("step", 12)]),  # one of the two is through
        ("llama", [("write", 1)]),
        ("llama", [("write", 3)]),
        ("llama", [("replaced", 2)]),
        ("llama", [("step", 5), ("step", 9)]),
        ("llama", [("write", 2), ("replaced", 2)]),
        ("gpt2", [("step", 6)]),
        ("gpt2", [("write", 4), ("step", 11)]),
    ],
)
def test_a_killed_training_ends_in_the_bytes_of_one_left_in_peace(
    tmp_path: Path, whole: dict[str, Plan], name: str, kills: list[tuple[str, int]]
) -> None:
    plan = replace(whole[name], folder=tmp_path / "kept", out=tmp_path / "out")
    for number, kill in enumerate(kills):
        assert finish([start(replace(plan, resume=number > 0, kill=kill))]) == [-signal.SIGKILL]
        assert not plan.out.exists()
    assert finish([start(replace(plan, resume=True))]) == [0]
    assert digests(plan) == digests(whole[name])
    first = kills == [("step", 1)] or kills == [("write", 1)]
    assert any(
        "no checkpoint" in each if first else "going on from the checkpoint" in each for each in told(plan.out)["told"]
    )
    for task in plan.tasks:
        lines, expected = (read_lines(each.folder / task / LOG) for each in (plan, whole[name]))
        untimed = [
            [{k: v for k, v in line.items() if "second" not in k} for line in each] for each in (lines, expected)
        ]
        assert untimed[0] == untimed[1]


def test_what_was_trained_to_the_end_is_only_read_again(tmp_path: Path, whole: dict[str, Plan]) -> None:
    plan = replace(whole["llama"], out=tmp_path / "out", resume=True)
    assert finish([start(plan)]) == [0]
    assert told(plan.out)["losses"] == {}
    assert digests(plan) == digests(whole["llama"])


# The file


def snapshot(value: float, **values: Any) -> Snapshot:
    tensors = {"parameter.a": torch.full((3,), value), "random.0": torch.arange(9, dtype=torch.uint8)}
    return Snapshot(tensors, {"step": 4, "history": [], **values})


CHECKPOINT = Checkpoint(
    8, 2, {"a": snapshot(1.0, best=None), "b": snapshot(2.0, losses=[[0.1], None, 1e-300])}, {"c": "no"}
)


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / NAME
    assert read_checkpoint(path) is None
    size = write_checkpoint(path, CHECKPOINT)
    assert path.stat().st_size == size
    found = read_checkpoint(path)
    assert found is not None
    assert (found.turn, found.threads, found.failed) == (8, 2, {"c": "no"})
    assert found.snapshots.keys() == {"a", "b"}
    for name, expected in CHECKPOINT.snapshots.items():
        assert found.snapshots[name].values == expected.values
        assert found.snapshots[name].tensors.keys() == expected.tensors.keys()
        for key, tensor in expected.tensors.items():
            assert torch.equal(found.snapshots[name].tensors[key], tensor)
            assert found.snapshots[name].tensors[key].dtype == tensor.dtype


def test_a_write_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    write_checkpoint(path, CHECKPOINT)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("adapterhub.training.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, replace(CHECKPOINT, turn=9))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "header":
        path.write_bytes(data[:20])
    elif how == "text":
        path.write_text("nothing of the kind")
    elif how == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    elif how == "marked":
        save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    elif how == "newer":
        path.write_bytes(data.replace(b'"format":"1"', b'"format":"9"'))
    else:
        path.write_bytes(data.replace(b'"turn":"8"', b'"turn":"x"'))


@pytest.mark.parametrize("how", ["empty", "truncated", "header", "text", "foreign", "marked", "newer", "turn"])
def test_what_is_no_checkpoint_is_refused_by_name_with_a_remedy(tmp_path: Path, how: str) -> None:
    path = tmp_path / NAME
    write_checkpoint(path, CHECKPOINT)
    before = path.read_bytes()
    damage(path, how)
    assert path.read_bytes() != before
    with pytest.raises(TrainingError, match=r"all\.checkpoint\.safetensors cannot be read \(.+\); remove it, or train"):
        read_checkpoint(path)
