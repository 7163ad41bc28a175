"""The soak of benchmarks/, in short and on a tiny base: a server of its own, everything at once, no wrong answer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from .publishing import make_base

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return importlib.import_module("soak")


def test_everything_at_once(soak: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    lines: list[str] = []
    plan = soak.Soak(4.0, writers=2, pause=0.2, options=("--threads", "1"))
    record, tally, server = soak.run(plan, base, tmp_path / "soak", lines.append)
    assert record["ok"], record
    assert record["wrong"] == record["wrong_answers"] == []
    assert record["judged"] > 5
    assert record["counted"][0] == record["counted"][1] > 20
    assert record["exit"] == 0
    # Each kind of client came, and each end a request may have.
    assert {"err", "keep", "leave a load", "leave a stream", "poison", "read slowly"} <= set(record["kinds"])
    assert min(record["answered"], record["refused"], record["left"]) > 0
    soak.draw(tally, server.samples, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_the_judge_tells_right_from_wrong(soak: Any, tmp_path: Path) -> None:
    """Answers of another adapter, cut ones, shifted probabilities: all are found."""
    judging, world_of = importlib.import_module("load.judge"), importlib.import_module("load.world")
    asked_of = importlib.import_module("load.tally")
    base = make_base(tmp_path / "base")
    world = world_of.make_world(tmp_path / "world", base, writers=1)
    digests = [version.digest for version in world.registry.versions("writer-0")]
    judge = judging.Judge(world, 2e-3, 1e-3)
    try:
        hub = judge._hub
        texts = [hub.predict(f"writer-0@{digest}", ["hello"], max_tokens=8)[0].completion for digest in digests]
        assert texts[0] != texts[1]
        probs = tuple((hub.predict("labels", ["hello"])[0].probs or {}).values())
        labelled = world.registry.resolve("labels").digest
        written = asked_of.Asked("chat", "writer-0", digests[0], "hello", 8)
        told = asked_of.Asked("labels", "labels", labelled, "hello")
        tally = asked_of.Tally()
        tally.said[written] = {texts[0]}
        tally.said[told] = {probs}
        assert judge.judge(tally) == judging.Verdict(2, 0, ())
        tally.said[written] |= {texts[1], texts[0][:-1], texts[0] + "x"}
        tally.said[told] |= {tuple(each + 0.01 for each in probs), probs[:-1]}
        assert len(judge.judge(tally).wrong) == 5
    finally:
        judge.close()


def test_a_near_tie_is_right_and_anything_further_is_not(soak: Any, tmp_path: Path) -> None:
    judging, world_of = importlib.import_module("load.judge"), importlib.import_module("load.world")
    asked_of = importlib.import_module("load.tally")
    world = world_of.make_world(tmp_path / "world", make_base(tmp_path / "base"), writers=1)
    judge = judging.Judge(world, 0.0, 1e-3)
    try:
        target = judge._hub.target("writer-0@1")
        asked = asked_of.Asked("text", "writer-0", target.digest, "hello", 6)
        prompt = tuple(judge._tokenizer("hello")["input_ids"])
        first = judge._say(target, prompt, 6)
        # The second token becomes the second likeliest one, and the reference goes on from there.
        second = sorted(first.logprobs[1].top, key=lambda each: -each[2])[1]
        gap = first.logprobs[1].logprob - second[2]
        said = (first.token_ids[0], second[1])
        other = said + judge._say(target, prompt + said, 4).token_ids
        tally = asked_of.Tally()
        tally.said[asked] = {judge._decode(other)}
        judge._epsilon = gap * 0.99
        assert len(judge.judge(tally).wrong) == 1
        judge._epsilon = gap * 1.01
        assert judge.judge(tally) == judging.Verdict(1, 1, ())
    finally:
        judge.close()
