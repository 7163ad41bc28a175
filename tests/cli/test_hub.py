"""`adapterhub push`, `pull` and `registry import` as people run them: own process, real socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.pipeline.strangers import make_stranger
from tests.tiny import make_tiny_base


class Shell:
    """Runs the program in a process of its own, against the local Hub."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def __call__(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **self.hub.environment(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        env |= {"ADAPTERHUB_CACHE": str(self.folder / "cache"), "COLUMNS": "200", **extra}
        command = [sys.executable, "-m", "adapterhub", *arguments]
        return subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, check=False)

    def json(self, *arguments: str) -> dict[str, object]:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with HubServer() as hub:
        make_tiny_base(tmp_path / "tiny")
        make_stranger(tmp_path / "tiny", tmp_path / "theirs", labels=2)
        yield Shell(hub, tmp_path)


def test_import_push_pull_keeps_the_digest(shell: Shell) -> None:
    made = shell.json(
        "registry",
        "import",
        "theirs",
        "--task",
        "tone",
        "--base",
        "./tiny",
        "--labels",
        "glad, sad",
        "--registry",
        "here",
    )
    assert (made["ref"], made["created"]) == ("tone@1", True)
    pushed = shell.json("push", "tone", "--repo", "me/tone", "--private", "--registry", "here")
    assert pushed["commit"] == shell.hub.repos["me/tone"].head.sha
    assert shell.hub.repos["me/tone"].private
    assert (pushed["changed"], pushed["tag"]) == (True, "v1")
    again = shell.json("push", "tone", "--repo", "me/tone", "--private", "--registry", "here")
    assert (again["changed"], again["commit"]) == (False, pushed["commit"])
    pulled = shell.json("pull", "me/tone@v1", "--as", "mood", "--registry", "there")
    assert pulled["digest"] == made["digest"] == pushed["digest"]
    assert shell.json("pull", "me/tone", "--registry", "there")["ref"] == "tone@1"
    task = json.loads((Path(str(pulled["path"])) / "task.json").read_text())
    assert task["labels"] == ["glad", "sad"]
    assert (shell.folder / "there" / "mood").is_dir()


def test_errors_are_one_line_on_stderr_and_exit_code_1(shell: Shell) -> None:
    missing = shell("pull", "me/none", "--as", "mood", "--registry", "there", "--json")
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert "there is no 'me/none'" in missing.stderr
    assert "Traceback" not in missing.stderr
    shell.json("registry", "import", "theirs", "--task", "tone", "--base", "./tiny", "--registry", "here")
    refused = shell("push", "tone", "--repo", "me/tone", "--registry", "here", HF_TOKEN="hf_wrong")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "HF_TOKEN" in refused.stderr
    offline = shell("pull", "me/tone", "--as", "mood", "--registry", "there", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE" in offline.stderr


def test_wrong_calls_have_exit_code_2(shell: Shell) -> None:
    assert shell("push").returncode == 2
    twice = shell("pull", "me/tone@v1", "--revision", "v2", "--registry", "there")
    assert twice.returncode == 2
    assert "give one of them" in twice.stderr
    wrong = shell("pull", "tone", "--as", "mood", "--registry", "there")
    assert wrong.returncode == 2
    assert "write ORG/NAME" in wrong.stderr
    assert shell.hub.requests == []


def test_text_for_people_goes_to_stderr(shell: Shell) -> None:
    done = shell("registry", "import", "theirs", "--task", "tone", "--base", "./tiny", "--registry", "here")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "tone@1 published" in done.stderr
