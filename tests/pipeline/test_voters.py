"""Voters asked through the runtime: prompts on a tiny base, adapters, and a server on a real socket."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub import AdapterHub
from adapterhub.base.source import Base
from adapterhub.data.example import Example
from adapterhub.errors import ConfigError, DataError, EndpointError, UsageError
from adapterhub.labeling.prompts import AdapterVoter, EndpointVoter, PromptVoter
from adapterhub.pipeline.voters import cast_votes
from adapterhub.registry.store import Registry
from adapterhub.server.access import Access
from tests.server.publishing import LABELS, make_base, publish
from tests.server.running import running

TEXTS = ("the sky is blue", "grass", "fire, and blood", "the sea")
ROWS = [Example(f"{place}", {"text": text}, where=f"rows.jsonl:{place + 1}") for place, text in enumerate(TEXTS)]
WORDS = {"cold": (" blue", " green"), "warm": (" red",)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def registry(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    scratch = tmp_path_factory.mktemp("registry")
    found = Registry(scratch / "registry")
    publish(found, base, "tone", scratch, kind="classification")
    publish(found, base, "writer", scratch)
    return found


@pytest.fixture
def hub(base: Base, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdapterHub]:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    with AdapterHub(base, registry) as found:
        yield found


def prompted(**changes: object) -> PromptVoter:
    record = {"name": "p", "prompt": "{text} is", "words": WORDS, "calibration": "none", **changes}
    return PromptVoter.model_validate(record)


def by_hand(hub: AdapterHub, text: str) -> str:
    """What the words' scores, asked one row at a time, say."""
    scores = hub.score(hub.base.name, f"{text} is", [" blue", " green", " red"])
    cold = math.exp(scores[0].logprob) + math.exp(scores[1].logprob)
    return "cold" if cold > math.exp(scores[2].logprob) else "warm"


def test_a_prompt_votes_for_the_likelier_words(hub: AdapterHub) -> None:
    cast = cast_votes(prompted(), ROWS, hub)
    assert list(cast.votes) == [by_hand(hub, text) for text in TEXTS]
    assert cast.asked == len(ROWS)
    assert cast.kind == "prompt"


def test_what_was_asked_is_not_asked_again(hub: AdapterHub) -> None:
    first = cast_votes(prompted(), ROWS[:3], hub)
    again = cast_votes(prompted(abstain_below=0.0), [*ROWS, Example("x", ROWS[0].fields)], hub)
    assert again.asked == 1  # the fourth text alone, also where a text comes twice
    assert list(again.votes[:3]) == list(first.votes)
    assert cast_votes(prompted(prompt="{text} was"), ROWS, hub).asked == len(ROWS)


def test_calibration_by_an_input_without_content_asks_it_too(hub: AdapterHub) -> None:
    cast = cast_votes(prompted(calibration="content-free"), ROWS, hub)
    assert len(cast.votes) == len(ROWS)
    assert cast.asked == len(ROWS) + 3
    assert cast.hash != cast_votes(prompted(), ROWS, hub).hash


def test_a_chain_writes_a_field_that_the_prompt_uses(hub: AdapterHub) -> None:
    chain = [{"into": "colour", "prompt": "{text} has the colour", "max_tokens": 3}]
    chained = prompted(chain=chain, prompt="{colour} is")
    written = hub.generate(hub.target(hub.base.name), _request("the sky is blue has the colour")).result().text.strip()
    assert list(cast_votes(chained, ROWS[:1], hub).votes) == [by_hand(hub, written)]


def _request(text: str) -> object:
    from adapterhub.runtime.target import GenerationRequest

    return GenerationRequest(text=text, max_tokens=3, temperature=0.0, stop=("\n",))


def test_a_chat_prompt_goes_through_the_template(hub: AdapterHub) -> None:
    (vote,) = cast_votes(prompted(chat=True), ROWS[:1], hub).votes
    turns = {"messages": [{"role": "user", "content": f"{TEXTS[0]} is"}]}
    scores = [math.exp(each.logprob) for each in hub.score(hub.base.name, turns, [" blue", " green", " red"])]
    assert vote == ("cold" if scores[0] + scores[1] > scores[2] else "warm")


def test_a_row_without_the_field_is_named(hub: AdapterHub) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: the field 'title' is missing; voter 'p' needs it"):
        cast_votes(prompted(prompt="{title}: {text}"), ROWS, hub)


def test_an_adapter_votes_under_other_names(hub: AdapterHub) -> None:
    plain = cast_votes(AdapterVoter(name="a", adapter="tone"), ROWS, hub)
    assert list(plain.votes) == [each.label for each in hub.predict("tone", TEXTS)]
    assert plain.asked == len(ROWS)
    again = cast_votes(AdapterVoter(name="b", adapter="tone"), [*ROWS, Example("x", {"text": "new"})], hub)
    assert again.asked == 1  # the rest is known, whatever the voter is called
    assert (list(again.votes[:-1]), list(again.chances[:-1])) == (list(plain.votes), list(plain.chances))
    renamed = AdapterVoter(name="a", adapter="tone", labels={"calm": "warm", "cross": None})
    names = {"calm": "warm", "cross": None, "glad": "glad"}
    assert list(cast_votes(renamed, ROWS, hub).votes) == [names[str(vote)] for vote in plain.votes]
    assert set(cast_votes(AdapterVoter(name="a", adapter="tone", abstain_below=0.9999), ROWS, hub).votes) == {None}
    assert plain.about["digest"] == hub.target("tone").digest


def test_only_what_gives_labels_votes(hub: AdapterHub) -> None:
    with pytest.raises(UsageError, match="no classification task"):
        cast_votes(AdapterVoter(name="a", adapter="writer"), ROWS, hub)
    with pytest.raises(ConfigError, match="renames 'sad'"):
        cast_votes(AdapterVoter(name="a", adapter="tone", labels={"sad": "warm"}), ROWS, hub)


def asked_elsewhere(port: int, **changes: object) -> EndpointVoter:
    record = {
        "name": "e",
        "endpoint": f"http://127.0.0.1:{port}/v1",
        "model": "writer",
        "prompt": "{text}",
        "words": {label: [label[0]] for label in LABELS},
        "max_tokens": 8,
        **changes,
    }
    return EndpointVoter.model_validate(record)


def test_a_server_is_asked_once_a_text(hub: AdapterHub) -> None:
    with running(hub) as server:
        first = cast_votes(asked_elsewhere(server.port), ROWS, hub)
        said = [
            server.openai()
            .chat.completions.create(
                model="writer", messages=[{"role": "user", "content": text}], max_tokens=8, temperature=0
            )
            .choices[0]
            .message.content
            for text in TEXTS
        ]
    places = [{label: text.lower().find(label[0]) for label in LABELS} for text in map(str, said)]
    wanted = [
        min((p, label) for label, p in each.items() if p >= 0)[1] if max(each.values()) >= 0 else None
        for each in places
    ]
    assert [vote and vote[0] for vote in first.votes] == [want and want[0] for want in wanted]
    assert first.asked == len(ROWS)
    # The server is gone, but nothing need be asked.
    assert cast_votes(asked_elsewhere(server.port), ROWS, hub).votes == first.votes


def test_a_server_that_refuses_or_is_gone_is_told(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(hub) as server, pytest.raises(EndpointError, match="answered 404"):
        cast_votes(asked_elsewhere(server.port, model="nobody"), ROWS, hub)
    with pytest.raises(EndpointError, match="gave no answer"):
        cast_votes(asked_elsewhere(server.port), ROWS, hub)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"\$NO_SUCH_KEY, which is not set"):
        cast_votes(asked_elsewhere(server.port, key_variable="NO_SUCH_KEY"), ROWS, hub)


def test_a_key_is_sent(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOTER_KEY", "right")
    with running(hub, access=Access(api_key="right")) as server:
        assert len(cast_votes(asked_elsewhere(server.port, key_variable="VOTER_KEY"), ROWS[:1], hub).votes) == 1
        monkeypatch.setenv("VOTER_KEY", "wrong")
        with pytest.raises(EndpointError, match="answered 401"):
            cast_votes(asked_elsewhere(server.port, key_variable="VOTER_KEY"), ROWS[1:], hub)
