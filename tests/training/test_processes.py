"""Several processes that train one adapter: as one process does with the same batches, and as it resumes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.lora.files import read_tensors
from adapterhub.registry.bundle import digest_folder
from adapterhub.training.checkpoint import read_checkpoint
from tests.tiny import make_tiny_base
from tests.training.driver import Plan, finish, start, told

pytestmark = pytest.mark.timeout(400)


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def launch(plan: Plan, count: int = 2, kill: tuple[str, int] | None = None) -> list[int | None]:
    """Train in so many processes; `kill` is for the first, which alone thinks that it is time for checkpoints."""
    port = free_port()
    plans = [
        replace(plan, kill=kill if rank == 0 else None, seconds=0.0 if rank == 0 else 1e9) for rank in range(count)
    ]
    processes = [start(each, **environment(rank, count, port)) for rank, each in enumerate(plans)]
    if kill is not None:
        # Nobody waits for a process that is gone.
        found = finish(processes[:1])
        for process in processes[1:]:
            process.kill()
            process.join()
        return found
    return finish(processes)


def plan_of(base: Path, folder: Path, name: str, *tasks: str, **changes: Any) -> Plan:
    return Plan(base, folder / name, folder / name / "out", tasks or ("a",), changes=tuple(changes.items()))


def compare(plan: Plan, expected: Plan, tolerance: float) -> None:
    one, other = told(plan.out), told(expected.out)
    assert one["losses"].keys() == other["losses"].keys()
    for task, losses in other["losses"].items():
        assert one["losses"][task] == pytest.approx(losses, rel=tolerance)
    assert one["validation"] == pytest.approx(other["validation"], rel=tolerance)
    for task in plan.tasks:
        found, wanted = read_tensors(plan.out / task), read_tensors(expected.out / task)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            # Of a gradient that is nothing but rounding Adam makes a step all the same: what part of the learning rate
            # (5e-3) a single element then differs by depends on the processor. A wrong gradient moves all of them.
            torch.testing.assert_close(found[name], tensor, rtol=100 * tolerance, atol=1e-4)
            assert (found[name] - tensor).abs().mean() < 1e-6


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: make_tiny_base(folder / family, family) for family in ("llama", "gpt2")}


@pytest.mark.parametrize(("family", "tasks"), [("llama", ("a", "b")), ("gpt2", ("a",))])
def test_two_processes_learn_what_one_learns_from_the_same_batches(
    tmp_path: Path, bases: dict[str, Path], family: str, tasks: Sequence[str]
) -> None:
    # 26 rows in batches of 5: the last has one row, of which one process has nothing.
    changes = {"batch_size": 5, "dropout": 0.0}
    one, two = (plan_of(bases[family], tmp_path, name, *tasks, **changes) for name in ("one", "two"))
    assert finish([start(one)]) == [0]
    assert launch(two) == [0, 0]
    assert told(two.out)["processes"] == 2
    compare(two, one, 1e-5 if family == "gpt2" else 2e-6)
    # Both processes end with the same adapter.
    for task in tasks:
        own, others = (read_tensors(out / task) for out in (two.out, two.out.with_name("out-1")))
        assert all(torch.equal(own[name], tensor) for name, tensor in others.items())


def test_two_processes_that_were_killed_end_as_two_that_were_not(tmp_path: Path, bases: dict[str, Path]) -> None:
    whole, cut = (plan_of(bases["llama"], tmp_path, name, "a", "b", dropout=0.3) for name in ("whole", "cut"))
    assert launch(whole) == [0, 0]
    assert launch(cut, kill=("step", 7)) == [-signal.SIGKILL]
    assert launch(replace(cut, resume=True)) == [0, 0]
    assert any("going on from the checkpoint" in each for each in told(cut.out)["told"])
    for task in whole.tasks:
        found, wanted = read_tensors(cut.out / task), read_tensors(whole.out / task)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_trunk_is_filled_by_one_and_read_by_both(tmp_path: Path, bases: dict[str, Path]) -> None:
    changes = {"layers": "top-2", "dropout": 0.0, "batch_size": 5}
    two, one = (plan_of(bases["llama"], tmp_path, name, "a", "b", **changes) for name in ("two", "one"))
    assert launch(two) == [0, 0]
    kept = sorted((bases["llama"].parent / "kept").rglob("*.states"))
    assert len(kept) == 2
    assert sum("layers below the adapter" in each for each in told(two.out)["told"]) == 2
    assert not any("layers below" in each for each in told(two.out.with_name("out-1"))["told"])
    assert finish([start(one)]) == [0]
    compare(two, one, 2e-6)
    assert sorted((bases["llama"].parent / "kept").rglob("*.states")) == kept


def test_trainings_that_fill_one_trunk_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base", "llama", seed=7)
    plans = [plan_of(base, tmp_path, str(i), "a", "b", layers="top-1") for i in range(3)]
    assert finish([start(plan) for plan in plans]) == [0, 0, 0]
    for task in plans[0].tasks:
        assert len({digest_folder(plan.out / task) for plan in plans}) == 1
    left = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.suffix for path in left} == {".index", ".states"}


def test_processes_draw_dropout_of_their_own(tmp_path: Path, bases: dict[str, Path]) -> None:
    plan = plan_of(bases["llama"], tmp_path, "two", dropout=0.5, steps=3)
    assert launch(plan) == [0, 0]
    checkpoint = read_checkpoint(plan.folder / "all.checkpoint.safetensors")
    assert checkpoint is not None
    tensors = checkpoint.snapshots["a"].tensors
    assert not torch.equal(tensors["random.0"], tensors["random.1"])
    assert "random.2" not in tensors


def test_torchrun_starts_them(tmp_path: Path, bases: dict[str, Path]) -> None:
    plan = plan_of(bases["llama"], tmp_path, "two", "a", dropout=0.0, steps=4)
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "from tests.training.driver import Plan, train\n"
        f"train(Plan(pathlib.Path({str(plan.base)!r}), pathlib.Path({str(plan.folder)!r}), "
        f"pathlib.Path({str(plan.out)!r}), changes={plan.changes!r}), {{}})\n"
    )
    one = replace(plan, folder=tmp_path / "one", out=tmp_path / "one" / "out")
    assert finish([start(one)]) == [0]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), str(script)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert told(plan.out)["processes"] == 2
    compare(plan, one, 2e-6)
