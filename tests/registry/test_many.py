"""Many processes at one registry: nothing is lost, nothing is given twice, and it verifies in the end.

`ADAPTERHUB_OPERATIONS=200 pytest tests/registry/test_many.py` has each of the 8 do 200; a test run does fewer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from adapterhub.registry.index import INDEX_FILE, Index
from adapterhub.registry.store import Registry

PROCESSES = 8
WORKER = """
import json, os, random, sys
from pathlib import Path
from adapterhub.errors import AdapterHubError, Conflict, RefNotFound
from adapterhub.registry.store import Registry
from tests.registry.making import make_card, make_folder

os.fsync = lambda _: None  # the machine survives, so this would only cost time
root, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(number)
registry = Registry(root / "registry")
folders = [make_folder(root / f"made-{number}" / str(each), str(each).encode()) for each in range(12)]
for step in range(count):
    task = draw.choice(["mail", "tone"])
    what = draw.choices(["publish", "alias", "remove", "delete", "resolve", "gc"], [6, 4, 1, 3, 6, 1])[0]
    done = {"what": what, "task": task}
    try:
        if what == "publish":
            got = registry.publish(task, draw.choice(folders), make_card())
            done |= {"version": got.version, "digest": got.digest, "created": got.created}
        elif what == "alias":
            registry.alias(task, draw.choice(["prod", "canary"]), f"{task}@{draw.randint(1, 12)}")
        elif what == "remove":
            registry.alias(task, draw.choice(["prod", "canary"]), None)
        elif what == "delete":
            got = registry.delete(f"{task}@{draw.randint(1, 12)}")
            done |= {"version": got.version, "digest": got.digest}
        elif what == "resolve":
            got = registry.resolve(draw.choice([task, f"{task}@{draw.randint(1, 12)}", f"{task}@prod"]))
            done |= {"version": got.version, "digest": got.digest}
        else:
            registry.gc()
    except (RefNotFound, Conflict) as error:
        done["refused"] = str(error)
    print(json.dumps(done))
"""


def test_eight_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    count = int(os.environ.get("ADAPTERHUB_OPERATIONS", "25"))
    (tmp_path / "registry").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(number), str(count)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    told = []
    for process in processes:
        out, error = process.communicate(timeout=500)
        assert process.returncode == 0, error
        told += [json.loads(line) for line in out.splitlines()]
    assert len(told) == PROCESSES * count
    registry = Registry(tmp_path / "registry")
    assert all(problem.note for problem in registry.verify())
    for task in registry.tasks():
        index = Index.from_json((registry.root / task / INDEX_FILE).read_text(), task)
        done = [each for each in told if each["task"] == task and "refused" not in each]
        _check(index, done)
    registry.gc()
    assert registry.verify() == []


def _check(index: Index, done: list[dict[str, object]]) -> None:
    ever = {each.version: each.digest for each in (*index.versions, *(gone.entry for gone in index.deleted))}
    # Numbers without a gap, each a digest's for good: whoever was told one was told the truth.
    assert sorted(ever) == list(range(1, len(ever) + 1))
    assert all(ever[each["version"]] == each["digest"] for each in done if "version" in each)  # type: ignore[index]
    # Each appearance was told to one publisher, each disappearance to one deleter.
    came = Counter(each["version"] for each in done if each.get("created"))
    went = Counter(each["version"] for each in done if each["what"] == "delete")
    listed = {each.version for each in index.versions}
    assert all(came[number] - went[number] == (number in listed) for number in ever)
    # The history replayed is what aliases mean, and no move is lost on the way.
    means: dict[str, int | None] = {}
    for move in index.history:
        assert means.get(move.alias) == move.before
        means[move.alias] = move.version
    assert {name: number for name, number in means.items() if number is not None} == dict(index.aliases)
