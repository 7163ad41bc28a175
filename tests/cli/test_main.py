"""The command line's root: quick help, exit codes, where text goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.cli import main
from tests.tiny import make_tiny_base

HEAVY = ("torch", "transformers", "peft", "accelerate", "huggingface_hub", "fastapi", "numpy", "pydantic")
MODELS = ("transformers.modeling_utils", "transformers.activations", "torch._dynamo", "peft")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapterhub", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom adapterhub.cli.main import create_app\ncreate_app()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_and_answering_load_no_models_of_transformers(tmp_path: Path) -> None:
    # They take longer to import than all else that a question takes, and the Llama family needs none of them.
    make_tiny_base(tmp_path / "base")
    said = [("glad", "up"), ("sad", "down")]
    rows = [{"text": f"so {word} {i}", "label": label} for i in range(10) for word, label in said]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        "{task: tone, base: ./base, kind: classification, data: {train: rows.jsonl}, training: {epochs: 1}}"
    )
    code = (
        "import sys\nfrom adapterhub.cli.main import create_app\n"
        "create_app()(['train', 'recipe.yaml', '--registry', 'kept'], standalone_mode=False)\n"
        "create_app()(['predict', 'tone', 'so', '--base', './base', '--registry', 'kept'], standalone_mode=False)\n"
        f"print([name for name in {MODELS!r} if name in sys.modules])"
    )
    environment = {**os.environ, "ADAPTERHUB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert '"label"' in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_and_version() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("train", "predict", "eval", "serve", "push", "pull", "base", "recipe", "registry"):
        assert f"  {command} " in shown.stdout
    assert run("--version").stdout.startswith("adapterhub 0.")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(PermissionError(13, "Permission denied", "/a[/b]"), 1, "/a[/b]"), (BrokenPipeError(), 0, "")],
)
def test_what_the_system_refuses_is_no_traceback(
    error: OSError, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise error

    monkeypatch.setattr(main, "create_app", lambda: lambda *_, **__: refused())
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with pytest.raises(SystemExit) as left:
        main.run([])
    assert left.value.code == code
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("Error: ") == bool(words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "No such command"),
        (["predict"], 2, "Missing argument"),
        (["predict", "tone", "a text", "--input", "file.jsonl"], 2, "not both"),
        (["predict", "tone", "a text", "--registry", "/nonexistent/registry"], 1, "/nonexistent/registry"),
        (["eval", "tone", "--data", "missing.jsonl", "--registry", "/nonexistent/registry"], 1, "no registry"),
        (["recipe", "check", "missing.yaml"], 1, "missing.yaml"),
    ],
)
def test_errors_go_to_stderr_with_their_exit_code(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
