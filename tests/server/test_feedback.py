"""Feedback over HTTP: on the disk when 200 says so, and about an answer that was given."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.data.feedback import Feedback, read_feedback
from adapterhub.server.access import Access
from adapterhub.server.feedback_store import FeedbackStore
from adapterhub.server.keys import KeyFile
from adapterhub.server.recall import Recall, Said

from .fake import BASE, LABELS, FakeHub, digest_of
from .running import Running, running

SAID = Said("tone", "tone", "sha256:ab", "classification", {"fields": {"text": "x" * 100}}, {"label": "calm"})
KEPT = Said(None, "tiny", None, "generation", {"text": "Hi"}, {"completion": "a"})
KEEPER = """
import os, signal, sys
from pathlib import Path
from adapterhub.server.recall import Recall, Said
said = Said(None, "tiny", None, "generation", {"text": "Hi"}, {"completion": "a"})
Recall(Path(sys.argv[1]), 1 << 20).keep("cmpl-1", [said])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(tmp_path / "feedback")


def lines(store: FeedbackStore) -> list[Feedback]:
    return list(read_feedback(store.path))


def classify(server: Running, model: str = "tone", given: Any = "abcd") -> Any:
    return server.post("/v1/classify", {"model": model, "input": given}).json


def test_labels(store: FeedbackStore) -> None:
    with running(FakeHub(), feedback=store) as server:
        answer = classify(server, given=["abcd", {"text": "abc", "shop": "x"}])
        told = server.post("/v1/feedback", {"id": answer["id"], "index": 1, "label": "glad"})
        (line,) = lines(store)
        assert told.json == {
            "object": "feedback",
            "id": answer["id"],
            "index": 1,
            "model": "tone",
            "digest": digest_of("tone"),
            "agrees": False,
        }
        assert (line.task, line.kind, line.digest, line.key) == ("tone", "classification", digest_of("tone"), None)
        assert line.input == {"fields": {"text": "abc", "shop": "x"}}
        assert line.predicted == {"label": "calm", "probs": answer["data"][1]["probs"]}
        assert line.right == {"label": "glad"}
        assert server.post("/v1/feedback", {"id": answer["id"], "label": LABELS[4 % 3]}).json["agrees"] is True
        many = classify(server, "tags@prod")
        assert server.post("/v1/feedback", {"id": many["id"], "labels": ["glad", "calm"]}).status == 200
        assert lines(store)[2].right == {"labels": ["glad", "calm"]}
        assert lines(store)[2].task == "tags"


@pytest.mark.parametrize("stream", [False, True])
def test_completions(store: FeedbackStore, stream: bool) -> None:
    def ask(path: str, body: Any) -> tuple[str, list[str]]:
        answer = server.post(path, {**body, "max_tokens": 5, "stream": stream})
        events = answer.events[:-1] if stream else [answer.json]
        texts = [""] * 2
        for choice in (choice for each in events for choice in each["choices"]):
            said = choice.get("delta", choice.get("message", choice))
            texts[choice["index"]] += said.get("content", said.get("text", "")) or ""
        return events[0]["id"], texts

    with running(FakeHub(), feedback=store) as server:
        turns = [{"role": "user", "content": "Hi"}]
        one, texts = ask(
            "/v1/chat/completions", {"model": "notes", "messages": turns, "template_fields": {"shop": "x"}}
        )
        two, more = ask("/v1/completions", {"model": "orders", "prompt": ["ab", "cd"]})
        three, _ = ask("/v1/completions", {"model": BASE, "prompt": [65, 66]})
        four, _ = ask("/v1/chat/completions", {"model": "orders", "messages": [*turns, *turns]})
        for identity, index in ((one, 0), (two, 1), (three, 0), (four, 0)):
            body = {"id": identity, "index": index, "completion": "right"}
            assert server.post("/v1/feedback", body).status == 200
        found = lines(store)
        assert [line.input for line in found] == [
            {"fields": {"prompt": "Hi", "shop": "x"}},
            {"text": "cd"},
            {"token_ids": [65, 66]},
            {"fields": {"messages": [*turns, *turns]}},
        ]
        assert found[0].predicted == {"completion": texts[0]}
        assert found[1].predicted == {"completion": more[1]}
        assert [line.task for line in found] == ["notes", "orders", None, "orders"]


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({"label": "gladd"}, 400, "label", "did you mean 'glad'"),
        ({"label": "zzz"}, 400, "label", "calm, cross, glad"),
        ({"completion": "x"}, 400, "label", "as 'label'"),
        ({"label": "glad", "labels": ["glad"]}, 400, "label", "nothing else"),
        ({}, 400, "label", "as 'label'"),
        ({"label": "glad", "index": 1}, 404, None, "index 1"),
        ({"label": "glad", "index": -1}, 400, "index", "index"),
        ({"label": "glad", "id": "clsf-0"}, 404, None, "clsf-0"),
        ({"label": "glad", "id": "x" * 5000}, 404, None, "xxx"),
    ],
)
def test_what_is_refused_is_not_kept(
    store: FeedbackStore, body: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    with running(FakeHub(), feedback=store) as server:
        answer = server.post("/v1/feedback", {"id": classify(server)["id"], **body})
        assert (answer.status, answer.error["param"]) == (status, param)
        assert said in answer.error["message"]
        assert len(answer.error["message"]) < 300
        assert not store.path.exists()


def test_a_server_that_keeps_none_says_so() -> None:
    with running(FakeHub()) as server:
        answer = server.post("/v1/feedback", {"id": classify(server)["id"], "label": "glad"})
        assert (answer.status, answer.error["code"]) == (400, "unsupported_request")
        assert "--feedback" in answer.error["message"]


def test_a_key_speaks_of_its_own_answers(store: FeedbackStore, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    shop, other = ({"authorization": f"Bearer {file.create(name)[1]}"} for name in ("shop", "other"))
    with running(FakeHub(), feedback=store, access=Access(file.path)) as server:
        asked = server.post("/v1/classify", {"model": "tone", "input": "abcd"}, shop)
        body = {"id": asked.json["id"], "label": "glad"}
        assert server.post("/v1/feedback", body, other).status == 404
        assert server.post("/v1/feedback", body, shop).status == 200
        assert [line.key for line in lines(store)] == ["shop"]


def test_an_answer_is_known_after_a_restart(tmp_path: Path) -> None:
    with running(FakeHub(), feedback=FeedbackStore(tmp_path)) as server:
        identity = classify(server)["id"]
    again = FeedbackStore(tmp_path)
    with running(FakeHub(), feedback=again) as server:
        assert server.post("/v1/feedback", {"id": identity, "label": "glad"}).status == 200
        assert lines(again)[0].input == {"fields": {"text": "abcd"}}


def test_an_answer_is_known_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "recent.sqlite"
    assert subprocess.run([sys.executable, "-c", KEEPER, str(path)], check=False).returncode == -9
    recall = Recall(path, 1 << 20)
    assert recall.find("cmpl-1", 0) == KEPT
    assert path.stat().st_mode & 0o777 == 0o600
    recall.close()


def test_the_oldest_answers_are_forgotten(tmp_path: Path) -> None:
    recall = Recall(tmp_path / "recent.sqlite", 2000)
    for number in range(100):
        recall.keep(f"clsf-{number}", [SAID, SAID])
        assert recall.find(f"clsf-{number}", 1) == SAID
    recall.close()
    recall = Recall(tmp_path / "recent.sqlite", 2000)
    known = [number for number in range(100) if recall.find(f"clsf-{number}", 1)]
    assert known == list(range(known[0], 100))
    assert 1 < len(known) < 10
    recall.keep("large", [Said(None, "tiny", None, "generation", {"text": "x" * 3000}, {})])  # above the budget alone
    assert recall.find("large", 0) is None
    assert recall.find("clsf-99", 0) is None
    recall.keep("small", [SAID])
    assert recall.find("small", 0) == SAID
    recall.close()


def test_a_disk_that_fails_costs_nobody_an_answer(store: FeedbackStore, caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeHub(), feedback=store) as server:
        store.recall.close()
        assert classify(server)["data"]
        assert "was not kept" in caplog.text
        store.recall = Recall(store.path.parent.with_name("other"), 1 << 20)
        identity = classify(server)["id"]
        shutil.rmtree(store.path.parent)
        store.path.parent.write_text("no folder any more")
        assert server.post("/v1/feedback", {"id": identity, "label": "glad"}).status == 500
