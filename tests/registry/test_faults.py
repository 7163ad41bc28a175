"""A publish that is stopped anywhere leaves the old state or the new one, and the next publish succeeds."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import AdapterHubError, Overloaded
from adapterhub.registry import disk
from adapterhub.registry.store import Registry

from .making import make_card, make_folder, snapshot

ATTACHED = {"probes.jsonl": "{}"}
STEPS = [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (shutil, "copyfile"), (os, "open")]


class Stop(BaseException):
    """What Ctrl-C looks like."""


@contextmanager
def failing_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> Iterator[list[str]]:
    """Let the `number`-th step that touches the disk raise, half of a copy done; yield the steps taken."""
    taken: list[str] = []

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            taken.append(name)
            if len(taken) == number:
                if name == "copyfile":
                    Path(args[1]).write_bytes(Path(args[0]).read_bytes()[:1])
                raise error
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in STEPS:
            patch.setattr(module, name, wrapped(name, getattr(module, name)))
        yield taken


@pytest.mark.parametrize("first", [True, False], ids=["first version", "next version"])
@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(errno.ENOSPC, "No space left on device"), AdapterHubError), (Stop(), Stop)],
    ids=["disk full", "interrupted"],
)
def test_a_failing_step_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, seen: type[BaseException], first: bool
) -> None:
    one, two = make_folder(tmp_path / "one", b"one"), make_folder(tmp_path / "two", b"two")
    outcomes = set()
    for number in range(1, 200):
        registry = Registry(tmp_path / f"registry-{number}")
        if not first:
            registry.publish("mail", one, make_card())
        before = snapshot(registry.root)
        with failing_at(monkeypatch, number, error) as taken, suppress(seen):
            registry.publish("mail", two, make_card(), ATTACHED)
            if len(taken) < number:
                break
        after = snapshot(registry.root)
        outcomes.add(after == before)
        if after != before:  # It stopped after the step that counts, and then everything is there.
            assert registry.resolve("mail").version == (1 if first else 2)
        assert not any(".tmp-" in name for name in after)
        assert not after or registry.verify() == []
        again = registry.publish("mail", two, make_card(), ATTACHED)
        assert again.version == (1 if first else 2)
        assert registry.verify() == []
    else:
        pytest.fail("the publish never ran through")
    assert outcomes == {True, False}


# Only what touches the disk is traced: between two of its lines nothing else can change a file.
KILLED_AT_EVERY_LINE = """
import os, shutil, signal, sys
from pathlib import Path
from adapterhub.registry.store import Registry
from tests.registry.making import make_card

root, folder, made, counter = *map(Path, sys.argv[1:]), 0
os.fsync = lambda _: None  # The kernel survives, so this would only cost time.
traced = tuple(sys.modules["adapterhub.registry." + name].__file__ for name in ("disk", "bundle", "publish"))

def trace(frame, event, argument):
    global counter
    if frame.f_code.co_filename not in traced:
        return None
    if event == "line":
        counter += 1
        if counter == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

for stop in range(1, 5000):
    child = os.fork()
    if child == 0:
        place = root / str(stop)
        if made.exists():
            shutil.copytree(made, place)
        sys.settrace(trace)
        Registry(place).publish("mail", folder, make_card(), {"probes.jsonl": "{}"})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    assert os.WTERMSIG(status) == signal.SIGKILL
sys.exit("the publish never ran through")
"""


@pytest.mark.parametrize("first", [True, False], ids=["first version", "next version"])
def test_kill_9_at_every_line_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    one, two = make_folder(tmp_path / "one", b"one"), make_folder(tmp_path / "two", b"two")
    if not first:
        Registry(tmp_path / "made").publish("mail", one, make_card())
    (tmp_path / "registries").mkdir()
    arguments = [str(tmp_path / "registries"), str(two), str(tmp_path / "made")]
    subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, *arguments], check=True, cwd=Path(__file__).parents[2], timeout=300
    )
    last = 1 if first else 2
    seen = set()
    for root in (tmp_path / "registries").iterdir():
        registry = Registry(root)
        versions = len(registry.versions("mail")) if registry.tasks() else 0
        assert versions in {last - 1, last}
        seen.add(versions)
        assert all(problem.note for problem in registry.verify())
        again = registry.publish("mail", two, make_card(), ATTACHED)
        assert (again.version, again.created) == (last, versions == last - 1)
        assert registry.verify() == []
        assert len(registry.versions("mail")) == last
    assert seen == {last - 1, last}


def test_a_kill_while_clearing_up_leaves_what_the_next_publish_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, folder = Registry(tmp_path / "registry"), make_folder(tmp_path / "a")
    leftover = registry.root / ".tmp-0123456789abcdef@mail"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("a file")

    def stopped(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stopped)
        with pytest.raises(Stop):
            registry.publish("mail", folder, make_card())
    registry.publish("mail", folder, make_card())
    assert registry.verify() == []
    assert sorted(path.name for path in registry.root.iterdir()) == [".locks", "mail"]


PUBLISH_WHEN_TOLD = """
import sys
from pathlib import Path
from adapterhub.registry.store import Registry
from tests.registry.making import make_card, make_folder

folder = make_folder(Path(sys.argv[2]), sys.argv[3].encode())
print("ready", flush=True)
sys.stdin.readline()
done = Registry(Path(sys.argv[1])).publish("mail", folder, make_card())
print(done.version, done.created)
"""


def publish_at_once(tmp_path: Path, weights: list[str]) -> list[tuple[int, bool]]:
    """Start one process for each weights, let them all publish to one task, return (version, created) of each."""
    folders = [tmp_path / f"folder-{number}" for number in range(len(weights))]
    commands = [[str(tmp_path / "registry"), str(folder), each] for folder, each in zip(folders, weights, strict=True)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH_WHEN_TOLD, *arguments],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments in commands
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [(int(version), created == "True") for version, created in answers]


def test_processes_that_publish_different_weights_at_once_all_succeed(tmp_path: Path) -> None:
    answers = publish_at_once(tmp_path, ["a", "b", "c", "d"])
    assert sorted(answers) == [(1, True), (2, True), (3, True), (4, True)]
    registry = Registry(tmp_path / "registry")
    assert len({version.digest for version in registry.versions("mail")}) == 4
    assert registry.verify() == []


def test_processes_that_publish_equal_weights_at_once_get_one_version(tmp_path: Path) -> None:
    answers = publish_at_once(tmp_path, ["a", "a", "a"])
    assert sorted(answers) == [(1, False), (1, False), (1, True)]
    assert Registry(tmp_path / "registry").verify() == []


def test_a_lock_that_stays_held_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_LOCK_SECONDS", 0.0)
    registry = Registry(tmp_path / "registry")
    folder = make_folder(tmp_path / "a")
    with disk.locked(registry.root, "mail"):
        with pytest.raises(Overloaded, match=r"mail\.lock"):
            registry.publish("mail", folder, make_card())
        registry.publish("other", folder, make_card())
    assert registry.tasks() == ["other"]
    assert (registry.root / ".locks" / ".gitignore").read_text() == "*\n"


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry")
    folder = make_folder(tmp_path / "a")
    says = pytest.raises(AdapterHubError, match=r"publish to task 'mail'.*No space left on device.*make room")
    with failing_at(monkeypatch, 12, OSError(errno.ENOSPC, "No space left on device")), says:
        registry.publish("mail", folder, make_card())
    assert registry.tasks() == []
