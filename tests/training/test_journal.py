"""A run's log: what was lived through, also after going back or being cut off; and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.training.job import Evaluation, StepReport
from adapterhub.training.journal import LOG, Journal, _running_mean, draw_losses, read_lines


def report(step: int, loss: float = 1.0) -> StepReport:
    return StepReport(step, 9, loss, 1e-3, 12.345, 67.89, 1.0, step / 3, 0.5)


def lived(folder: Path, begin: int, stop: int) -> None:
    journal = Journal(folder, begin)
    for step in range(begin + 1, stop + 1):
        journal.step(report(step, float(begin)))
        if step % 2 == 0:
            journal.evaluated(Evaluation(step, "accuracy", 0.5, 0.25), best=step == 2)
    journal.close()


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_lines(folder / LOG)]


def test_each_line_is_out_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "toy", 0)
    journal.step(report(1))
    (line,) = read_lines(tmp_path / "new" / "toy" / LOG)
    assert line == {
        "step": 1,
        "epoch": 0.3333,
        "loss": 1.0,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "examples_per_second": 12.35,
        "tokens_per_second": 67.9,
    }
    journal.evaluated(Evaluation(1, "accuracy", 0.5, 0.25), best=True)
    journal.close()
    assert read_lines(journal.path)[1] == {
        "step": 1,
        "metric": "accuracy",
        "value": 0.5,
        "loss": 0.25,
        "split": "validation",
        "best": True,
    }


def test_what_comes_after_the_step_gone_back_to_is_void(tmp_path: Path) -> None:
    lived(tmp_path, 0, 5)
    assert steps(tmp_path) == [1, 2, 2, 3, 4, 4, 5]
    lived(tmp_path, 3, 6)
    assert steps(tmp_path) == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert [line["loss"] for line in read_lines(tmp_path / LOG) if "split" not in line] == [0.0] * 3 + [3.0] * 3
    lived(tmp_path, 0, 1)
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("end", ['{"step": 4, "lo', "{", "garbage\n", '{"step": 4, "loss": 0.1'])
def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, end: str) -> None:
    lived(tmp_path, 0, 3)
    with (tmp_path / LOG).open("a") as file:
        file.write(end)
    assert steps(tmp_path) == [1, 2, 2, 3]
    lived(tmp_path, 3, 4)
    assert steps(tmp_path) == [1, 2, 2, 3, 4, 4]


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / LOG) == []


@pytest.mark.parametrize("judged", [[], [{"step": 2, "metric": "accuracy", "value": 0.5, "loss": 0.4, "split": "v"}]])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_picture_is_a_png_of_what_the_log_says(
    tmp_path: Path, metric: str, judged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[list[float], list[float]]] = []
    original = Axes.plot

    def plot(self: Axes, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append((list(x), list(y)))
        return original(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", plot)
    lines = [{"step": step, "loss": 1.0 / step} for step in range(1, 5)]
    told = [{**line, "metric": metric} for line in judged]
    draw_losses(iter([*lines, *told]), tmp_path / "loss.png", "toy")
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) > 5000
    assert drawn[0] == ([1, 2, 3, 4], [1.0, 0.5, 1 / 3, 0.25])
    assert drawn[2] == ([line["step"] for line in told], [line["loss"] for line in told])
    assert len(drawn) == (4 if told and metric == "accuracy" else 3)


def test_the_running_mean_begins_at_the_first_value() -> None:
    assert _running_mean([]) == []
    assert _running_mean([4.0, 4.0, 4.0]) == pytest.approx([4.0] * 3)
    found = _running_mean([2.0, 0.0])
    assert found[0] == 2.0
    assert found[1] == pytest.approx(2.0 * 0.95 / 1.95)
