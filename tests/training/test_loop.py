"""The loop over a network whose losses are written down: break-downs, going back, journals, checkpoints."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapterhub.errors import TrainingError
from adapterhub.training.job import StepReport
from adapterhub.training.journal import LOG, PLOT, read_lines
from adapterhub.training.keeper import Keeper
from adapterhub.training.learner import Judged, Turn
from adapterhub.training.loop import Loop
from adapterhub.training.objectives import Classification
from adapterhub.training.run import Run
from tests.training.jobs import Recorder, make_recipe
from tests.training.test_run import ROWS, Weights

ALONE: Any = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True, device=torch.device("cpu"))
STEPS = 12


@pytest.fixture(autouse=True)
def _snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.training.loop.SNAPSHOT_STEPS", 5)
    monkeypatch.setattr("adapterhub.training.loop.CHECKPOINT_SECONDS", 0.0)


class Written:
    """A network on which each learner's loss is told by a function of how often it was asked, from 1."""

    dtype, device, pads = torch.float32, torch.device("cpu"), False

    def __init__(self, losses: dict[int, Callable[[int], float]] | None = None) -> None:
        self._losses = losses or {}
        self.asked: dict[int, int] = {}
        self.validation = [0.5]

    def learn(self, turns: Sequence[Turn]) -> list[float]:
        found = []
        for turn in turns:
            key = id(turn.learner)
            self.asked[key] = self.asked.get(key, 0) + 1
            noise = float(torch.rand((), generator=turn.learner.generator))  # type: ignore[attr-defined]
            for parameter in turn.learner.parameters().values():
                assert parameter.grad is not None
                parameter.grad += noise - 0.3
            found.append(self._losses.get(key, lambda n: 1.0)(self.asked[key]))
        return found

    def judge(self, learner: Any, objective: Any, rows: Sequence[Any]) -> Judged:
        value = self.validation.pop(0) if len(self.validation) > 1 else self.validation[0]
        return Judged(value * len(rows), float(len(rows)), [torch.tensor([1, 2])])


def run_of(name: str, **training: Any) -> Run:
    settings = {"steps": STEPS, "batch_size": 4, "schedule": "constant", "warmup": 0.0, "learning_rate": 0.3}
    made = make_recipe(training=settings | training).training
    return Run(name, Weights(), Classification(), ROWS, ROWS[:2], made, pads=False)


def looped(
    runs: list[Run],
    network: Written | None = None,
    progress: Recorder | None = None,
    folder: Path | None = None,
    *,
    resume: bool = False,
    track: Any = None,
) -> Loop:
    keeper = None if folder is None else Keeper(folder, "all")
    loop = Loop(network or Written(), runs, ALONE, progress or Recorder(), keeper, track)
    if resume:
        assert loop.resume()
    loop.run()
    return loop


def at(*steps: int, value: float = math.nan) -> Callable[[int], float]:
    """A loss of 1, and `value` the n-th time it is asked for."""
    return lambda n: value if n in steps else 1.0


def test_a_break_down_goes_back_once_with_a_third_of_the_rate(tmp_path: Path) -> None:
    runs, progress = [run_of("a"), run_of("b")], Recorder()
    network = Written({id(runs[0].learner): at(8)})
    loop = looped(runs, network, progress, tmp_path)
    assert loop.failed == {}
    steps = [report.step for report in progress.steps_of["a"]]
    assert steps == [1, 2, 3, 4, 5, 6, 7, *range(6, 13)]
    rates = [report.learning_rate for report in progress.steps_of["a"]]
    assert rates == pytest.approx([0.3] * 7 + [0.1] * 7)
    assert [report.step for report in progress.steps_of["b"]] == list(range(1, 13))
    assert [each for each in progress.told if "Going back to step 5, once, with a third" in each]
    # The journal tells the steps lived through, each once.
    lines = read_lines(tmp_path / "a" / LOG)
    assert [line["step"] for line in lines if "split" not in line] == list(range(1, 13))
    assert [line["learning_rate"] for line in lines if "split" not in line] == pytest.approx([0.3] * 5 + [0.1] * 7)


def test_it_goes_back_to_the_very_same_weights_and_dropout() -> None:
    # A NaN where no dropout was drawn in vain: what follows is what a slower run from there would have been.
    broken, calm = run_of("a"), run_of("b", steps=5)
    looped([calm])
    network = Written({id(broken.learner): at(8)})
    looped([broken], network)
    calm.steps = STEPS
    calm.slowed = 1
    looped([calm])
    for name, parameter in calm.learner.parameters().items():
        assert torch.equal(parameter, broken.learner.parameters()[name])


def test_a_second_break_down_ends_the_run_with_advice_and_the_others_go_on(tmp_path: Path) -> None:
    runs, progress = [run_of("a"), run_of("b"), run_of("c")], Recorder()
    network = Written({id(runs[1].learner): at(3, 7)})
    loop = looped(runs, network, progress, tmp_path)
    assert list(loop.failed) == ["b"]
    assert "lower training.learning_rate" in str(loop.failed["b"])
    assert [runs[i].step for i in (0, 2)] == [STEPS, STEPS]
    assert [report.step for report in progress.steps_of["b"]] == [1, 2, 1, 2, 3]
    alone = run_of("alone")
    looped([alone])
    for name, parameter in alone.learner.parameters().items():
        assert torch.equal(parameter, runs[0].learner.parameters()[name])


def test_a_loss_that_explodes_goes_back_too() -> None:
    run, progress = run_of("a", steps=60), Recorder()
    network = Written({id(run.learner): at(30, value=30.0)})
    assert looped([run], network, progress).failed == {}
    assert run.slowed == 1
    assert any("the loss rose to" in each and "Going back to step" in each for each in progress.told)


@pytest.mark.parametrize("bad", ["validation", "weights"])
def test_what_breaks_down_at_the_very_end_fails(bad: str) -> None:
    run, network = run_of("a"), Written()
    if bad == "validation":
        run = run_of("a", eval_every=STEPS)
        network.validation = [math.nan]
    else:
        with torch.no_grad():
            run.learner.parameters()["a"].fill_(math.inf)
        run.validation = ()
    loop = looped([run], network)
    assert isinstance(loop.failed["a"], TrainingError)


def test_early_stopping_ends_one_run_and_its_best_weights_come_back() -> None:
    runs = [run_of("a", eval_every=2, early_stopping=2), run_of("b", eval_every=100)]
    network = Written()
    network.validation = [0.9, 0.5, 0.7, 0.6]
    weights: dict[str, Any] = {}

    class Remembering(Recorder):
        def evaluated(self, task: str, evaluation: Any, *, best: bool) -> None:
            super().evaluated(task, evaluation, best=best)
            if best and task == "a":
                weights.update({k: v.detach().clone() for k, v in runs[0].learner.parameters().items()})

    loop = looped(runs, network, Remembering())
    assert loop.failed == {}
    assert runs[0].stopped_early
    assert (runs[0].step, runs[1].step) == (8, STEPS)
    assert runs[0].best is not None
    assert runs[0].best.step == 4
    assert all(torch.equal(p, weights[name]) for name, p in runs[0].learner.parameters().items())


class Interrupting(Recorder):
    """Stops at a step as a user does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._at = step

    def step(self, task: str, report: StepReport) -> None:
        super().step(task, report)
        if report.step == self._at and task == "b":
            raise KeyboardInterrupt


@pytest.mark.parametrize("stops", [[3], [7], [11, 12], [6, 8, 12]])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, stops: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.training.keeper.draw_losses", lambda *told: None)

    def fresh() -> list[Run]:
        return [run_of("a", eval_every=3, lora_plus=2.0), run_of("b", steps=STEPS + 4, seed=1)]

    whole, resumed = fresh(), fresh()
    looped(whole, folder=tmp_path / "whole")
    for number, stop in enumerate(stops):
        progress = Interrupting(stop)
        loop = Loop(Written(), resumed, ALONE, progress, Keeper(tmp_path / "cut", "all"))
        assert loop.resume() == (number > 0 and max(stops[:number]) > 5)
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        assert progress.told[-2:] == ["end", "end"]
        resumed = fresh()
    progress = Recorder()
    loop = Loop(Written(), resumed, ALONE, progress, Keeper(tmp_path / "cut", "all"))
    assert loop.resume() == (max(stops) > 5)
    loop.run()
    for one, other in zip(whole, resumed, strict=True):
        for name, parameter in one.learner.parameters().items():
            assert torch.equal(parameter, other.learner.parameters()[name])
        assert [e.step for e in one.history] == [e.step for e in other.history]
        lines = [read_lines(tmp_path / which / one.name / LOG) for which in ("whole", "cut")]
        assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
        told = [[line["gradient_norm"] for line in each if "split" not in line] for each in lines]
        assert told[0] == told[1]


def test_a_run_that_failed_stays_failed_when_the_others_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    runs = [run_of("a"), run_of("b", steps=20)]
    network = Written({id(runs[0].learner): at(2, 3)})
    with pytest.raises(KeyboardInterrupt):
        looped(runs, network, Interrupting(18), tmp_path)
    monkeypatch.setattr("adapterhub.training.loop.torch.set_num_threads", threads.append)
    again = [run_of("a"), run_of("b", steps=20)]
    loop = looped(again, folder=tmp_path, resume=True)
    assert list(loop.failed) == ["a"]
    assert "lower training.learning_rate" in str(loop.failed["a"])
    assert (again[0].step, again[1].step) == (0, 20)
    # Other threads would round otherwise.
    assert threads == [torch.get_num_threads()]


def test_a_slower_rate_survives_a_resume(tmp_path: Path) -> None:
    run = run_of("b", steps=20)
    network = Written({id(run.learner): at(4)})
    with pytest.raises(KeyboardInterrupt):
        looped([run], network, Interrupting(13), tmp_path)
    again, progress = run_of("b", steps=20), Recorder()
    looped([again], None, progress, tmp_path, resume=True)
    assert [report.learning_rate for report in progress.steps] == pytest.approx([0.1] * 9)  # from step 11 on


def test_a_full_disk_is_told_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, progress = run_of("a"), Recorder()
    kept = tmp_path / "all.checkpoint.safetensors"
    asked = []

    def full(descriptor: int) -> None:
        asked.append(kept.exists())
        if len(asked) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("adapterhub.training.checkpoint.os.fsync", full)
    assert looped([run], None, progress, tmp_path).failed == {}
    assert run.step == STEPS
    (said,) = [each for each in progress.told if "checkpoint" in each]
    assert said.startswith(
        f"the checkpoint could not be written to {tmp_path} (No space left on device); training goes"
    )
    assert asked == [False, True, True]  # steps 5, 10 and the last; the one before was still there
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [kept.name]


@pytest.mark.parametrize("what", ["step", "evaluated", "rewind", "end"])
def test_a_journal_that_cannot_be_written_is_told_once_and_training_goes_on(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*told: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {"rewind": "keeper.Journal", "end": "keeper.draw_losses"}.get(what, f"journal.Journal.{what}")
    monkeypatch.setattr(f"adapterhub.training.{where}", full)
    runs, progress = [run_of("a", eval_every=3), run_of("b", eval_every=3)], Recorder()
    assert looped(runs, None, progress, tmp_path).failed == {}
    assert [run.step for run in runs] == [STEPS, STEPS]
    (said,) = [each for each in progress.told if "journals" in each]
    assert said.startswith(f"the journals in {tmp_path} could not be written (No space left on device); training goes")


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert not Loop(Written(), [run_of("a")], ALONE, Recorder(), Keeper(tmp_path, "all")).resume()
    assert not Loop(Written(), [run_of("a")], ALONE, Recorder()).resume()


@pytest.mark.parametrize("other", ["name", "shape", "more"])
def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path: Path, other: str) -> None:
    looped([run_of("a")], folder=tmp_path)
    run = run_of("b" if other == "name" else "a")
    if other == "shape":
        run.learner.tensors["a"] = torch.zeros(1, requires_grad=True)  # type: ignore[attr-defined]
    if other == "more":
        run.learner.tensors["head"] = torch.zeros(3, requires_grad=True)  # type: ignore[attr-defined]
    loop = Loop(Written(), [run], ALONE, Recorder(), Keeper(tmp_path, "all"))
    with pytest.raises(TrainingError, match=r"all\.checkpoint\.safetensors is of another training.*without --resume"):
        loop.resume()
    assert run.step == 0


def test_fewer_processes_than_are_launched_now_are_told(tmp_path: Path) -> None:
    looped([run_of("a")], folder=tmp_path)
    second: Any = SimpleNamespace(**{**vars(ALONE), "process_index": 1, "num_processes": 2})
    with pytest.raises(TrainingError, match=r"fewer processes .* resume with as many as then"):
        Loop(Written(), [run_of("a")], second, Recorder(), Keeper(tmp_path, "all")).resume()


def test_journals_hold_every_step_and_are_drawn(tmp_path: Path) -> None:
    looped([run_of("a", eval_every=4)], folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "a" / LOG).read_text().splitlines()]
    steps = [line for line in lines if "split" not in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert steps[2].keys() == {
        *("step", "epoch", "loss", "learning_rate", "gradient_norm", "examples_per_second", "tokens_per_second")
    }
    assert steps[2]["epoch"] == 1.0
    judged = [line for line in lines if "split" in line]
    assert [(line["step"], line["best"], line["metric"]) for line in judged] == [
        (4, True, "accuracy"),
        (8, False, "accuracy"),
        (12, False, "accuracy"),
    ]
    assert (tmp_path / "a" / PLOT).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_tracker_hears_of_every_step_and_evaluation() -> None:
    heard: list[tuple[str, dict[str, float], int]] = []
    looped([run_of("a", eval_every=6)], track=lambda *told: heard.append(told))
    steps = [(values, step) for task, values, step in heard if task == "a" and "loss" in values]
    assert [step for _, step in steps] == list(range(1, STEPS + 1))
    assert steps[0][0]["learning_rate"] == pytest.approx(0.3)
    assert [(values["validation_accuracy"], step) for _, values, step in heard if "validation_loss" in values] == [
        (0.5, 6),
        (0.5, 12),
    ]
