"""One text, answered side by side: by the bare base, by prompts with and without answered rows, and by adapters.

What one likes is kept: a text with its right label as a gold row, a prompt as a voter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from adapterhub.data.append import append_lines
from adapterhub.data.example import Example, collect_labels
from adapterhub.data.prompt import input_field
from adapterhub.data.task import TaskSpec
from adapterhub.errors import AdapterHubError, UnsupportedRequest, UsageError
from adapterhub.labeling.prompts import PromptVoter, Voter, fields_of, read_voters
from adapterhub.recipe import parse_yaml
from adapterhub.registry.disk import replace_file

from .bare import choose_shots, label_prompt
from .voters import cast_votes

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.runtime.target import Prediction

_MOST_TOKENS = 48


@dataclass(frozen=True)
class Opinion:
    """What one of those asked said; `chance` is how likely it found that, None where it only wrote text.

    `wrong` says why it could not be asked.
    """

    who: str
    answer: str | None
    chance: float | None = None
    wrong: str = ""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {key: value for key, value in vars(self).items() if key != "wrong" or value}


class Explorer:
    """Asks everybody about one text. `refs` are adapters, `voters` prompts and others; `few_shot` of `shots` are shown.

    What labels there are is said by `labels`, else by the first classification among the adapters, by the first prompt,
    or by `shots`; where nothing says, the base only writes. Raises UsageError where there is nobody to ask.
    """

    def __init__(
        self,
        hub: AdapterHub,
        refs: Sequence[str],
        voters: Sequence[Voter] = (),
        shots: Sequence[Example] = (),
        few_shot: int = 8,
        labels: Sequence[str] = (),
    ) -> None:
        self._hub, self._refs, self._voters = hub, tuple(refs), list(voters)
        if hub.base.is_encoder and not (refs or voters):
            raise UsageError(f"{hub.base.name} is an encoder, which by itself says nothing; name adapters on it")
        self._spec = self._task(labels) if labels else self._labels_known(shots)
        self._prompted: list[PromptVoter] = []
        if self._spec is not None and not hub.base.is_encoder:
            self._prompted.append(_called("base, told the labels", label_prompt(self._spec, ())))
            if shots:
                shown = choose_shots(shots, self._spec, few_shot)
                self._prompted.append(_called(f"base, shown {len(shown)} rows", label_prompt(self._spec, shown)))

    def prompt(self, name: str, template: str) -> PromptVoter:
        """Return a prompt for the labels there are, each said by its name; raises UsageError where none are known."""
        if self._spec is None:
            raise UsageError("nothing says what labels there are; name them with --labels")
        words = dict(label_prompt(self._spec, ()).words)
        try:
            voter = PromptVoter(name=name, prompt=template, words=words)
        except ValidationError as error:
            told = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors(include_url=False))
            raise UsageError(f"no prompt: {told}; write a name, then a template such as: {{text}} It was") from error
        if (names := fields_of(template)) != {"text"}:
            told = ", ".join(f"{{{name}}}" for name in sorted(names - {"text"})) or "no field"
            raise UsageError(f"the template has {told}; write {{text}} where the text goes, and no other field")
        return voter

    def check_label(self, label: str) -> None:
        """Raise UsageError for a label that is none of those there are, where that is known."""
        if self._spec is not None and label not in self._spec.labels:
            raise UsageError(f"there is no label {label!r}; the labels are {', '.join(self._spec.labels)}")

    def _labels_known(self, shots: Sequence[Example]) -> TaskSpec | None:
        for ref in self._refs:
            spec = self._hub.target(ref).spec
            if spec is not None and spec.kind == "classification":
                return spec
        prompted = next((voter for voter in self._voters if isinstance(voter, PromptVoter)), None)
        labels = collect_labels(shots, "classification") if prompted is None else tuple(prompted.words)
        return self._task(labels) if labels else None

    def _task(self, labels: Sequence[str]) -> TaskSpec:
        base = self._hub.base
        return TaskSpec("classification", base.fingerprint, base.context_length, tuple(labels))

    def add(self, voter: PromptVoter) -> None:
        """Ask a further prompt from now on; one of that name is replaced."""
        self._voters = [*(each for each in self._voters if each.name != voter.name), voter]

    def ask(self, text: str) -> Iterator[Opinion]:
        """Yield what each says of the text, as they answer; one that cannot answer does not stop the others."""
        if not self._hub.base.is_encoder:
            yield self._written(text)
        for voter in (*self._prompted, *self._voters):
            yield self._voted(voter, text)
        for ref in self._refs:
            yield self._answered(ref, text)

    def _written(self, text: str) -> Opinion:
        base = self._hub.base.name
        target = self._hub.target(base)
        try:
            asked = {"messages": [{"role": "user", "content": text}]}
            (said,) = self._hub.answers(target, [asked], max_tokens=_MOST_TOKENS)
        except UnsupportedRequest:  # no chat template
            (said,) = self._hub.answers(target, [{"prompt": text}], max_tokens=_MOST_TOKENS)
        return Opinion(f"{base} writes", (said.completion or "").strip())

    def _voted(self, voter: Voter, text: str) -> Opinion:
        if isinstance(voter, PromptVoter) and voter.calibration == "batch":
            # One text is no batch.
            voter = voter.model_copy(update={"calibration": "content-free"})
        names = fields_of(voter.prompt) if isinstance(voter, PromptVoter) else set()
        row = Example("", {**dict.fromkeys(names, text), "text": text}, where="the text")
        try:
            cast = cast_votes(voter, [row], self._hub)
        except AdapterHubError as error:
            return Opinion(voter.name, None, wrong=str(error))
        return Opinion(voter.name, cast.votes[0], cast.chances[0] if cast.chances else None)

    def _answered(self, ref: str, text: str) -> Opinion:
        target = self._hub.target(ref)
        kind = "generation" if target.spec is None else target.spec.kind
        try:
            (said,) = self._hub.answers(target, [{input_field(kind): text}])
        except AdapterHubError as error:
            return Opinion(ref, None, wrong=str(error))
        return Opinion(ref, *_shown(said))


def save_gold(path: Path, text: str, label: str) -> None:
    """Add a row with its right label to a JSONL file; it is on the disk when this returns."""
    line = json.dumps({"text": text, "label": label, "source": "gold"}, ensure_ascii=False) + "\n"
    append_lines(path, line.encode("utf-8"), keep=_is_json)


def save_voter(path: Path, voter: PromptVoter) -> None:
    """Add a prompt to a YAML file of voters, which need not exist; what stands there stays as it is.

    Raises UsageError where one of that name is there, or where the file is written so that nothing can be added.
    """
    record = {key: value for key, value in voter.model_dump(mode="json").items() if key in voter.model_fields_set}
    line = f"  - {json.dumps(record, ensure_ascii=False)}\n"
    if not path.exists():
        replace_file(path, f"voters:\n{line}")
        return
    before = read_voters(path)
    if voter.name in {each.name for each in before.voters}:
        raise UsageError(f"{path}: a voter {voter.name!r} is there already; choose another name")
    text = path.read_text("utf-8")
    longer = f"{text}{'' if text.endswith(chr(10)) else chr(10)}{line}"
    if len(_voters_in(longer)) != len(before.voters) + 1:
        raise UsageError(f"{path}: nothing can be added at its end; put this under `voters`:\n{line}")
    replace_file(path, longer)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _voters_in(text: str) -> Sequence[Any]:
    try:
        record = parse_yaml(text, "")
    except AdapterHubError:
        return ()
    voters = record.get("voters") if isinstance(record, dict) else None
    return voters if isinstance(voters, list) else ()


def _called(name: str, voter: PromptVoter) -> PromptVoter:
    return voter.model_copy(update={"name": name})


def _shown(said: Prediction) -> tuple[str | None, float | None]:
    if said.completion is not None:
        return said.completion.strip(), None
    if said.vector is not None:
        return f"a vector of {len(said.vector)}", None
    probs: Mapping[str, float] = said.probs or {}
    if said.labels is not None:
        return ", ".join(said.labels) or "none", None
    return said.label, max(probs.values(), default=None)
