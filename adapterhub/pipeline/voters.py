"""Models as voters: prompts on the frozen base, adapters and other servers each say a label of each row, or none."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.data.example import Example, asked_of
from adapterhub.data.prompt import render_text
from adapterhub.data.task import PromptSpec
from adapterhub.errors import ConfigError, DataError, EndpointError, InvalidRequest, UsageError
from adapterhub.folders import cache_root
from adapterhub.labeling.answer_cache import AnswerCache
from adapterhub.labeling.prompts import (
    CONTENT_FREE,
    AdapterVoter,
    EndpointVoter,
    PromptVoter,
    Step,
    Voter,
    fields_of,
    named_first,
    votes_of,
)

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub

# Rows asked before what was answered is put on the disk: what a killed run loses at most.
_TOGETHER = 256
_ANSWER_SECONDS = 120.0
Watch = Callable[[str, int, int], None]
"""Hears of (voter, rows done, rows in all)."""


@dataclass(frozen=True)
class Cast:
    """What one voter said of each row, None where it abstained, and what it was: `hash` changes with its votes.

    `asked` counts the rows that a model was asked about now; the others were known from before. `chances` are how
    likely the model found its likeliest label, given as a vote or not; empty for a server that only writes.
    """

    voter: str
    votes: Sequence[str | None]
    kind: str
    hash: str
    asked: int
    about: Mapping[str, Any] = field(default_factory=dict)
    chances: Sequence[float] = ()

    def to_record(self) -> dict[str, Any]:
        """Return what the votes' lineage keeps of the voter."""
        return {"kind": self.kind, "hash": self.hash, **self.about}


def cast_votes(
    voter: Voter, examples: Sequence[Example], hub: AdapterHub, watch: Watch = lambda _, __, ___: None
) -> Cast:
    """Ask one voter about all rows.

    Raises ConfigError for a key variable that is not set, DataError with the place of a row that lacks a field of the
    prompt, EndpointError where another server refuses, and what `AdapterHub.target` and answering raise.
    """
    if isinstance(voter, PromptVoter):
        return _Prompted(hub, voter, examples, watch).cast()
    if isinstance(voter, AdapterVoter):
        return _cast_by_adapter(voter, examples, hub, watch)
    return _cast_by_endpoint(voter, examples, watch)


class _Prompted:
    """One prompt voter at work on the base of `hub`."""

    def __init__(self, hub: AdapterHub, voter: PromptVoter, examples: Sequence[Example], watch: Watch) -> None:
        self._hub, self._voter, self._examples, self._watch = hub, voter, examples, watch
        self._target = hub.target(hub.base.name)
        self._written = {step.into for step in voter.chain}
        used = fields_of(voter.prompt).union(*(fields_of(step.prompt) for step in voter.chain))
        self._used = sorted(used - self._written)
        self._cache = AnswerCache(_answers_of(hub) / "prompts.sqlite")

    def cast(self) -> Cast:
        import numpy as np

        given = [self._fields(example) for example in self._examples]
        bare = [dict.fromkeys(self._used, text) for text in CONTENT_FREE]
        asks_bare = self._voter.calibration == "content-free"
        inputs = [*(bare if asks_bare else ()), *given]
        keys = [self._key(each) for each in inputs]
        known = self._cache.get(keys)
        missing = {key: each for key, each in zip(keys, inputs, strict=True) if key not in known}
        asked = 0
        rest = iter(missing.items())
        while part := list(islice(rest, _TOGETHER)):
            fresh = dict(zip((key for key, _ in part), self._scores([each for _, each in part]), strict=True))
            self._cache.put(fresh)
            known |= fresh
            asked += len(part)
            self._watch(self._voter.name, asked, len(missing))
        scores = np.array([known[key] for key in keys])
        cut = len(CONTENT_FREE) if asks_bare else 0
        votes, probs = votes_of(self._voter, scores[cut:], scores[:cut] if asks_bare else None)
        about = {"prompt": self._voter.prompt, "base": self._hub.base.name, "fingerprint": self._hub.base.fingerprint}
        chances = [float(each) for each in probs.max(axis=1)]
        return Cast(self._voter.name, votes, "prompt", self._voter.vote_hash(), asked, about, chances)

    def _scores(self, inputs: Sequence[Mapping[str, Any]]) -> Iterator[list[float]]:
        """Yield the log-probability of each continuation after the prompt of each input."""
        filled = [dict(each) for each in inputs]
        for step in self._voter.chain:
            for each, text in zip(filled, self._write(step, filled), strict=True):
                each[step.into] = text
        asked = ((self._input(self._voter.prompt, each), self._voter.continuations) for each in filled)
        for scores in self._hub.scores(self._target, asked):
            yield [score.logprob for score in scores]

    def _write(self, step: Step, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return what the base writes after the prompt of a step, greedily, for each input."""
        from adapterhub.runtime.target import GenerationRequest

        streams = []
        for each in inputs:
            said = self._input(step.prompt, each)
            given = {"text": said} if isinstance(said, str) else {"messages": tuple(said["messages"])}
            request = GenerationRequest(**given, max_tokens=step.max_tokens, temperature=0.0, stop=step.stop)
            streams.append(self._hub.generate(self._target, request))
        return [stream.result().text.strip() for stream in streams]

    def _input(self, template: str, fields: Mapping[str, Any]) -> Any:
        text = render_text(PromptSpec(template=template), fields)
        return {"messages": [{"role": "user", "content": text}]} if self._voter.chat else text

    def _fields(self, example: Example) -> dict[str, Any]:
        for name in self._used:
            if example.fields.get(name) is None:
                raise DataError(f"{example.where}: the field {name!r} is missing; voter {self._voter.name!r} needs it")
        return {name: example.fields[name] for name in self._used}

    def _key(self, fields: Mapping[str, Any]) -> str:
        return f"{self._voter.code_hash()}:{_text_hash(fields)}"


def _answers_of(hub: AdapterHub) -> Path:
    """Return the folder of what the base of `hub`, and adapters on it, answered."""
    return cache_root() / "answers" / hub.base.fingerprint.removeprefix("sha256:")[:16]


def _cast_by_adapter(voter: AdapterVoter, examples: Sequence[Example], hub: AdapterHub, watch: Watch) -> Cast:
    target = hub.target(voter.adapter)
    if target.spec is None or target.spec.kind != "classification":
        raise UsageError(f"voter {voter.name!r}: {voter.adapter!r} is no classification task; only these vote")
    if strange := sorted(set(voter.labels) - set(target.spec.labels)):
        raise ConfigError(
            f"voter {voter.name!r} renames {strange[0]!r}, which {voter.adapter!r} has not; it has "
            f"{', '.join(target.spec.labels)}"
        )
    inputs = [asked_of(example, "classification") for example in examples]
    # What an adapter says is its weights' and its rules', of which thresholds may have been set anew.
    keys = [f"{target.digest}:{target.rules}:{_text_hash(each)}" for each in inputs]
    cache = AnswerCache(_answers_of(hub) / "adapters.sqlite")
    known = cache.get(keys)
    missing = {key: each for key, each in zip(keys, inputs, strict=True) if key not in known}
    asked = 0
    rest = iter(missing.items())
    while part := list(islice(rest, _TOGETHER)):
        answers = hub.answers(target, (each for _, each in part))
        fresh = {
            key: [each.label, max((each.probs or {}).values(), default=0.0)]
            for (key, _), each in zip(part, answers, strict=True)
        }
        cache.put(fresh)
        known |= fresh
        asked += len(part)
        watch(voter.name, asked, len(missing))
    votes: list[str | None] = []
    for label, chance in (known[key] for key in keys):
        silent = label is None or chance < voter.abstain_below
        votes.append(None if silent else voter.labels.get(label, label))
    about = {"adapter": voter.adapter, "digest": target.digest}
    digest = _text_hash({"voter": voter.vote_hash(), **about})
    return Cast(voter.name, votes, "adapter", digest, asked, about, [known[key][1] for key in keys])


def _cast_by_endpoint(voter: EndpointVoter, examples: Sequence[Example], watch: Watch) -> Cast:
    """Ask row by row: what a server of others allows at once is not known here. Answers are kept as prompts' are."""
    cache = AnswerCache(cache_root() / "answers" / "endpoints.sqlite")
    headers = _headers(voter)
    code, votes, asked = voter.vote_hash(), [], 0
    texts = [_rendered(voter, example) for example in examples]
    keys = [f"{code}:{_text_hash({'prompt': text})}" for text in texts]
    known = cache.get(keys)
    for key, text in zip(keys, texts, strict=True):
        if key not in known:
            known[key], asked = _ask(voter, headers, text), asked + 1
            cache.put({key: known[key]})  # at once: answers may cost money
        votes.append(named_first(known[key], voter.words))
        watch(voter.name, len(votes), len(examples))
    about = {"endpoint": voter.endpoint, "model": voter.model}
    return Cast(voter.name, votes, "endpoint", code, asked, about)


def _rendered(voter: EndpointVoter, example: Example) -> str:
    try:
        return render_text(PromptSpec(template=voter.prompt), example.fields)
    except InvalidRequest as error:
        raise DataError(f"{example.where}: {error}") from error


def _headers(voter: EndpointVoter) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if voter.key_variable is not None:
        key = os.environ.get(voter.key_variable)
        if not key:
            raise ConfigError(
                f"voter {voter.name!r} takes its key from ${voter.key_variable}, which is not set; set it"
            )
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _ask(voter: EndpointVoter, headers: Mapping[str, str], text: str) -> str:
    turns = [{"role": "system", "content": voter.system}] if voter.system is not None else []
    turns.append({"role": "user", "content": text})
    body = {"model": voter.model, "messages": turns, "max_tokens": voter.max_tokens, "temperature": 0}
    url = f"{voter.endpoint.rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), dict(headers))  # noqa: S310 (http or https alone)
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310
            return str(json.load(answer)["choices"][0]["message"]["content"] or "")
    except urllib.error.HTTPError as error:
        told = error.read(2000).decode("utf-8", "replace").strip()[:200]
        raise EndpointError(
            f"voter {voter.name!r}: {url} answered {error.code}: {told}; what was answered before is kept, "
            "so run again when that is solved"
        ) from error
    except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(
            f"voter {voter.name!r}: {url} gave no answer ({error!r}); see to it and run again"
        ) from error


def _text_hash(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
