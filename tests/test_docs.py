"""What the documents say is true: every command in them runs, and docs/cli.md is what the command line prints."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from adapterhub.cli.reference import reference
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Return the shell and Python blocks of a page; `make` lines apart, which `.ci/run` runs as steps of their own."""
    fence = re.compile(r"^```(bash|sh|shell|console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = []
    for kind, text in fence.findall(page.read_text("utf-8")):
        kept = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("make "))
        if kind == "python":
            blocks.append(f"python - <<'EOF'\n{text}EOF")
        elif kept.strip():
            blocks.append(kept)
    return blocks


def thin_out(data: Path) -> None:
    """Leave every fourth of the rows that are only measured on: the pages are run to see that they run."""
    for file in (path for split in ("validation", "test") for path in data.glob(f"*/{split}.jsonl")):
        rows = file.read_text("utf-8").splitlines(keepends=True)
        if len(rows) >= 45:
            file.write_text("".join(rows[::4]), "utf-8")


def test_cli_reference_is_what_the_command_line_prints() -> None:
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == reference(), "run `make docs`"


def test_pages_have_commands() -> None:
    assert len(commands(ROOT / "README.md")) > 0


@pytest.mark.real
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("recipes", "registry"):
        shutil.copytree(ROOT / name, home / name)
    thin_out(home / "recipes" / "data")
    with HubServer() as hub:
        environment = {
            **os.environ,
            **hub.environment(tmp_path / "hf"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        # One shell, as a reader has: a server that a block starts answers the blocks after it.
        script = "\n".join(["set -euo pipefail", *commands(page)])
        shell = ["bash", "-c", script]
        with subprocess.Popen(
            shell, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        ) as running:
            try:
                said, told = running.communicate(timeout=580)
            finally:
                # Servers that a page started go with it, however it ended.
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, f"{page.name}:\n{said[-3000:]}\n{told[-3000:]}"
