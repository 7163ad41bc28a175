from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from adapterhub.cli.main import run
from adapterhub.cli.train_progress import LineProgress, LiveProgress, describe, duration, progress_for
from adapterhub.registry.store import Registry
from adapterhub.training.job import Evaluation, StepReport
from tests.pipeline.toys import write_recipe


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(["train", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_json_is_one_line_a_task_on_stdout_and_all_else_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_recipe(tmp_path, "one"), write_recipe(tmp_path, "two")
    registry = tmp_path / "registry"
    assert command(first, second, "--registry", registry, "--set", "training.epochs=2", "--json") == 0
    said = capsys.readouterr()
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record["ref"] for record in records] == ["one@1", "two@1"]
    assert records[0]["digest"] == Registry(registry).resolve("one").digest
    assert Registry(registry).resolve("one").card().recipe["training"]["epochs"] == 2.0
    assert "step 10/10: loss" in said.err
    assert "one@1" in said.err
    assert "accuracy" in said.err


def test_without_json_stdout_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command(
            write_recipe(tmp_path),
            "--registry",
            tmp_path / "r",
            "--set",
            "training.steps=2",
            "--set",
            "training.epochs=null",
        )
        == 0
    )
    assert capsys.readouterr().out == ""


def test_a_recipe_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_recipe(tmp_path, "bad", lora={"targets": ["c_attn"]})
    good = write_recipe(tmp_path, "good")
    typo = write_recipe(tmp_path, "typo", kindd="classification")
    code = command(bad, good, typo, "--registry", tmp_path / "r", "--json", "--set", "training.epochs=1")
    said = capsys.readouterr()
    assert code == 1
    assert [json.loads(line)["task"] for line in said.out.splitlines()] == ["good"]
    assert "2 of 3 recipes failed" in said.err
    assert "'c_attn'" in said.err
    # The typo is found before anything is trained.
    assert said.err.index("kindd") < said.err.index("reading")
    assert Registry(tmp_path / "r").tasks() == ["good"]


def test_no_recipe_is_a_wrong_call() -> None:
    assert command() == 2


def report(step: int, steps: int = 40) -> StepReport:
    return StepReport(step, steps, 0.5, 1e-3, 12.34, 567.8, 61.0, step / steps, 1.5)


def test_a_log_gets_about_ten_lines_however_many_steps() -> None:
    for steps in (7, 40, 1000):
        stream = io.StringIO()
        progress = progress_for(Console(file=stream, width=200))
        assert type(progress) is LineProgress
        progress.begin("toy", steps)
        for step in range(1, steps + 1):
            progress.step("toy", report(step, steps))
        progress.evaluated("toy", Evaluation(steps, "accuracy", 0.9, 0.25), best=True)
        progress.end("toy")
        lines = stream.getvalue().splitlines()
        assert len(lines) == min(steps, 10) + 2
        assert lines[-2] == f"toy: step {steps}/{steps}: loss 0.5000, 12.3 examples/s, 568 tokens/s, 1:01 left"
        assert lines[-1] == f"toy: step {steps}: validation accuracy 0.9000, loss 0.2500 (best so far)"


def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=160, force_terminal=True, color_system=None)
    progress = progress_for(console)
    assert isinstance(progress, LiveProgress)
    progress.begin("toy", 40)
    progress.begin("other", 40)
    for step in range(1, 41):
        progress.step("toy", report(step))
    progress.end("toy")
    progress.end("toy")
    progress.end("other")
    drawn = stream.getvalue()
    assert "toy" in drawn
    assert "other" in drawn
    assert "40/40" in drawn
    assert "loss 0.5000  12.3 examples/s  568 tokens/s  1:01 left" in drawn


def test_words_for_evaluations_and_durations() -> None:
    assert describe(Evaluation(5, "loss", 1.5, 1.5), best=False) == "step 5: validation loss 1.5000"
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 36061)] == ["0:00", "1:00", "59:59", "1:00:00", "10:01:01"]


def test_an_estimate_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, registry = write_recipe(tmp_path), tmp_path / "registry"
    assert command(path, "--registry", registry, "--estimate", "--json") == 0
    said = capsys.readouterr()
    (record,) = [json.loads(line) for line in said.out.splitlines()]
    assert (record["task"], record["steps"]) == ("toy", 20)
    assert "peak memory" in said.err
    assert not registry.exists()


def test_to_resume_without_a_checkpoint_is_to_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path)
    assert command(path, "--registry", tmp_path / "r", "--set", "training.epochs=1", "--resume") == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "no checkpoint: from the beginning" in said
    assert "toy@1: log and plot in" in said
