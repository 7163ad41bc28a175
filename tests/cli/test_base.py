"""`adapterhub base`: data on stdout, words on stderr."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from adapterhub.base.catalog import CATALOG
from adapterhub.base.source import open_base
from adapterhub.cli import base as commands
from tests.base.wheels import tiny_entry
from tests.tiny import make_tiny_base


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return make_tiny_base(tmp_path / "tiny")


def call(*arguments: str) -> Result:
    app = typer.Typer()
    commands.register(app)
    return CliRunner().invoke(app, ["base", *arguments], catch_exceptions=False)


def test_show_for_scripts_is_one_object(folder: Path) -> None:
    result = call("show", str(folder), "--json")
    assert json.loads(result.stdout) == open_base(str(folder)).to_record()
    assert {"name", "path", "fingerprint", "parameters", "dtype"} <= json.loads(result.stdout).keys()


def test_show_for_people_is_on_stderr(folder: Path) -> None:
    result = call("show", str(folder))
    assert result.stdout == ""
    base = open_base(str(folder))
    for said in ("LlamaForCausalLM", "39,840", "float32", "0.2 MB", "512 tokens", base.fingerprint, "not stated"):
        assert said in result.stderr


def test_show_pulls_what_is_not_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tiny_entry(tmp_path / "shelf")
    monkeypatch.setenv("ADAPTERHUB_WHEELS", str(tmp_path / "shelf"))
    monkeypatch.setitem(open_base.__kwdefaults__, "catalog", {"tiny": entry})
    result = call("show", "tiny", "--json")
    assert json.loads(result.stdout)["path"] == str(tmp_path / "cache" / "bases" / "tiny")
    assert "Fingerprinting tiny" in result.stderr


def test_a_folder_named_like_markup_is_printed_as_it_is(folder: Path, tmp_path: Path) -> None:
    odd = make_tiny_base(tmp_path / "m[" / "x] [red]")
    for command in ("show", "pull"):
        assert str(odd) in call(command, str(odd)).stderr


@pytest.mark.parametrize("watched", [True, False])
def test_a_step_named_like_markup_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    written = io.StringIO()
    monkeypatch.setattr(commands, "console", lambda: Console(file=written, width=120, force_terminal=watched))
    with commands.base_progress() as progress:
        progress("Fingerprinting m[/x]")
    assert "m[/x]" in written.getvalue()


def test_pull_says_where_it_is(folder: Path) -> None:
    result = call("pull", str(folder))
    assert result.stdout == ""
    assert str(folder) in result.stderr
    assert json.loads(call("pull", str(folder), "--json").stdout)["path"] == str(folder)


def test_list_shows_the_catalog(folder: Path) -> None:
    listed: list[dict[str, Any]] = json.loads(call("list", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(CATALOG)
    assert not any(entry["pulled"] for entry in listed)
    result = call("list")
    assert result.stdout == ""
    for entry in CATALOG.values():
        assert entry.name in result.stderr
        assert f"no; {entry.wheel_bytes / 1e6:.1f} MB to fetch" in result.stderr


def test_steps_are_printed_once_where_no_one_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(commands, "console", lambda: Console(file=written, width=80))
    with commands.base_progress() as progress:
        for done in range(5):
            progress("Fetching", done, 5_000_000)
        progress("Unpacking")
    assert written.getvalue() == "Fetching (5.0 MB)\nUnpacking\n"


def test_a_bar_is_drawn_where_someone_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(commands, "console", lambda: Console(file=written, width=80, force_terminal=True))
    with commands.base_progress() as progress:
        progress("Fetching", 1_000_000, 5_000_000)
        progress("Unpacking")
    assert "Unpacking" in written.getvalue()


def test_these_commands_need_no_torch(folder: Path) -> None:
    script = (
        "import sys, typer; from adapterhub.cli import base; app = typer.Typer(); base.register(app)\n"
        f"app(['base', 'show', {str(folder)!r}, '--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
