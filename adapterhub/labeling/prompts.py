"""Prompts as voters: a YAML list of them, and how what a model says of label words becomes a vote.

A prompt's answer is scored, not written: each label has words, and the log-probability of these words after the prompt
says how well the label fits (Brown et al., 2020). Small models like some words whatever is asked, so what they say of
all rows together is taken off (Zhou et al., "Batch calibration", ICLR 2024), or what they say of an input without
content (Zhao et al., "Calibrate before use", ICML 2021).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from adapterhub.errors import ConfigError, FileMissing
from adapterhub.recipe import TEMPLATE_PART, check_template, parse_yaml

# What stands in place of a row's texts where nothing is said.
CONTENT_FREE = ("N/A", "", "[MASK]")
Template = Annotated[str, Field(min_length=1), AfterValidator(check_template)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Part(BaseModel):
    """A part of the file: nothing unknown, nothing changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed), Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Step(Part):
    """A question of a chain: what the model writes after `prompt` is the field `into` of what follows."""

    into: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
    prompt: Template
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 24
    stop: tuple[str, ...] = ("\n",)


class PromptVoter(Part):
    """A prompt that votes: `words` are what follows it for each label, with the space before a word.

    `chain` are questions that the base answers first (Arora et al., "Ask Me Anything", ICLR 2023). `chat` asks through
    the base's chat template. No vote is given where the likeliest label is less likely than `abstain_below`.
    """

    name: Annotated[str, Field(min_length=1)]
    prompt: Template
    words: Annotated[Mapping[str, Words], Field(min_length=2)]
    chain: tuple[Step, ...] = ()
    chat: bool = False
    calibration: Literal["batch", "content-free", "none"] = "batch"
    abstain_below: Share = 0.0

    @model_validator(mode="after")
    def _chain_is_used(self) -> PromptVoter:
        texts = [*(step.prompt for step in self.chain), self.prompt]
        for place, step in enumerate(self.chain):
            if not any(step.into in fields_of(text) for text in texts[place + 1 :]):
                raise ValueError(f"chain writes the field {step.into!r}, which no later prompt uses")
        return self

    @property
    def continuations(self) -> tuple[str, ...]:
        """All words, those of the first label first."""
        return tuple(word for words in self.words.values() for word in words)

    def code_hash(self) -> str:
        """Return the sha256 of what the model is asked: scores under the same one are the same."""
        asked = {"prompt": self.prompt, "words": self.continuations, "chat": self.chat}
        return _hash(asked | {"chain": [step.model_dump() for step in self.chain]})

    def vote_hash(self) -> str:
        """Return the sha256 of all that changes a vote."""
        return _hash(self.model_dump(mode="json"))


class AdapterVoter(Part):
    """A version of a classification task that votes; `labels` gives its labels other names, null for an abstain."""

    name: Annotated[str, Field(min_length=1)]
    adapter: Annotated[str, Field(min_length=1)]
    labels: Mapping[str, str | None] = {}
    abstain_below: Share = 0.0

    def vote_hash(self) -> str:
        """Return the sha256 of all that changes a vote, but for the version that the ref means."""
        return _hash(self.model_dump(mode="json"))


class EndpointVoter(Part):
    """An OpenAI-compatible server that votes: the label whose word its answer names first.

    `key_variable` is the environment variable that holds the key, which stands in no file.
    """

    name: Annotated[str, Field(min_length=1)]
    endpoint: Annotated[str, Field(pattern=r"^https?://")]
    model: Annotated[str, Field(min_length=1)]
    prompt: Template
    words: Annotated[Mapping[str, Words], Field(min_length=2)]
    system: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    key_variable: str | None = None

    def vote_hash(self) -> str:
        """Return the sha256 of all that changes a vote."""
        return _hash(self.model_dump(mode="json"))


Voter = PromptVoter | AdapterVoter | EndpointVoter


class VoterFile(Part):
    """A file of voters; `base` is who is asked, else the recipe's or the default."""

    base: str | None = None
    voters: Annotated[tuple[Voter, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, given: Any) -> Any:
        """Read each voter as the kind that its keys say, so that messages speak of that kind alone."""
        if not isinstance(given, dict) or not isinstance(given.get("voters"), list):
            return given
        return {**given, "voters": [_read_voter(place, each) for place, each in enumerate(given["voters"])]}

    @model_validator(mode="after")
    def _named_once(self) -> VoterFile:
        names = [voter.name for voter in self.voters]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise ValueError(f"two voters are named {name!r}; name each otherwise")
        return self


def read_voters(path: Path) -> VoterFile:
    """Read a YAML file of voters. Raises FileMissing, and ConfigError with file, key and value of what is wrong."""
    if not path.is_file():
        raise FileMissing(f"{path}: there is no such file of voters")
    try:
        record = parse_yaml(path.read_text("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the file cannot be read as UTF-8 text ({error})") from error
    if not isinstance(record, dict) or "voters" not in record:
        raise ConfigError(f"{path}: expected the key `voters` with a list, each with a name and a prompt and words")
    try:
        return VoterFile.model_validate(record)
    except ValidationError as error:
        problems = [
            f"{path}: {'.'.join(map(str, detail['loc']))}{': ' if detail['loc'] else ''}"
            f"{detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(problems)) from error


def fields_of(template: str) -> set[str]:
    """Return the names of the fields that a template uses."""
    return {part["name"] for part in TEMPLATE_PART.finditer(template) if part["name"]}


def votes_of(
    voter: PromptVoter, logprobs: np.ndarray, without_content: np.ndarray | None
) -> tuple[list[str | None], np.ndarray]:
    """Return each row's label, None for an abstain, and float64 probabilities [rows, labels] in the order of `words`.

    `logprobs` [rows, continuations] and `without_content` [inputs, continuations] are what the words got; the latter is
    needed where the voter is calibrated by it.
    """
    scores = _by_label(voter, logprobs)
    if voter.calibration == "content-free":
        assert without_content is not None
        scores = scores - _log_mean(_by_label(voter, without_content))
    elif voter.calibration == "batch":
        scores = scores - _log_mean(scores)
    probs = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    names = list(voter.words)
    best, sure = probs.argmax(1), probs.max(1)
    said = [names[label] if chance >= voter.abstain_below else None for label, chance in zip(best, sure, strict=True)]
    return said, probs


def named_first(answer: str, words: Mapping[str, Sequence[str]]) -> str | None:
    """Return the label whose word an answer names first, the longest where two begin at one place; None if none."""
    said = answer.lower()
    places = [
        (place, -len(word), label)
        for label, each in words.items()
        for word in (given.strip().lower() for given in each)
        if word and (place := said.find(word)) >= 0
    ]
    return min(places)[2] if places else None


def _by_label(voter: PromptVoter, logprobs: np.ndarray) -> np.ndarray:
    """Return log-probabilities [rows, labels] that sum to one: a label's words are different ways to say it."""
    ends = np.cumsum([len(words) for words in voter.words.values()])
    parts = np.split(logprobs.astype(np.float64), ends[:-1], axis=1)
    scores = np.stack([np.logaddexp.reduce(part, axis=1) for part in parts], axis=1)
    normal: np.ndarray = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return normal


def _log_mean(scores: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.logaddexp.reduce(scores, axis=0) - np.log(len(scores))
    return mean


def _read_voter(place: int, given: Any) -> Voter:
    if not isinstance(given, dict):
        # pydantic tells of ValueErrors alone
        raise ValueError(f"voters[{place}] is {given!r:.60}; expected keys such as name and prompt")  # noqa: TRY004
    kind: type[Voter] = EndpointVoter if "endpoint" in given else AdapterVoter if "adapter" in given else PromptVoter
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        named = given.get("name", f"voters[{place}]")
        told = [
            f"{named}: {'.'.join(map(str, detail['loc']))}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors(include_url=False)
        ]
        raise ValueError("; ".join(told)) from error


def _hash(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
