"""A raw record becomes an Example, or is refused with the place and the reason."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import DataError
from adapterhub.recipe import LABELLED, Kind

from .example import Example, content_id

ROLES = ("system", "user", "assistant")
_ASIDE = ("id", "weight", "probs", "source")


@dataclass(frozen=True)
class RowRules:
    """What a row must hold: for which kind, with which labels (None: any), and whether the gold answer is needed."""

    kind: Kind
    labels: Collection[str] | None = None
    labelled: bool = True


def to_example(record: Any, rules: RowRules, where: str) -> Example:
    """Check `record` against `rules`; a null is as good as an absent field. Raises DataError naming `where`."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: {_show(record)} is not an object with named fields; expected {expected(rules)}")
    given = {str(name): value for name, value in record.items() if value is not None}
    fields = {name: value for name, value in given.items() if name not in _ASIDE}
    _CHECKS[rules.kind](fields, rules, where)
    return Example(
        id=_identity(given, where) or content_id(fields),
        fields=fields,
        weight=_weight(given, where),
        probs=_probs(given, rules, where),
        source=_source(given, where),
        where=where,
    )


def expected(rules: RowRules) -> str:
    """Describe a right row in one line of JSON, for messages."""
    answer = _ANSWERS[rules.kind] if rules.labelled else ""
    if rules.kind == "generation":
        return f'{{"prompt": "…"{answer}}} or {{"messages": […]}}'
    if rules.kind == "preference":
        return f'{{"prompt": "…"{answer}}} or {{"messages": […]{answer}}}'
    return f'{{"text": "…"{answer}}}'


_ANSWERS: Mapping[Kind, str] = {
    "classification": ', "label": "…"',
    "multilabel": ', "labels": ["…"]',
    "generation": ', "completion": "…"',
    "preference": ', "chosen": "…", "rejected": "…"',
    "embedding": ', "positive": "…"',
}


def _check_classification(fields: Mapping[str, Any], rules: RowRules, where: str) -> None:
    _text(fields, "text", rules, where)
    if rules.labelled or "label" in fields:
        _known(_label(_present(fields, "label", rules, where), where), rules, where)


def _check_multilabel(fields: Mapping[str, Any], rules: RowRules, where: str) -> None:
    _text(fields, "text", rules, where)
    if not (rules.labelled or "labels" in fields):
        return
    labels = _present(fields, "labels", rules, where)
    if not isinstance(labels, list):
        raise DataError(f'{where}: labels is {_show(labels)}; expected a list of names such as ["a", "b"]')
    for index, label in enumerate(labels):
        _known(_label(label, where), rules, where)
        if label in labels[:index]:
            raise DataError(f"{where}: label {label!r} is given twice; name each label once")


def _check_generation(fields: Mapping[str, Any], rules: RowRules, where: str) -> None:
    if "messages" not in fields:
        _text(fields, "prompt", rules, where)
        if rules.labelled or "completion" in fields:
            _text(fields, "completion", rules, where)
        return
    if "prompt" in fields:
        raise DataError(f"{where}: the row has both prompt and messages; give one of them")
    answered = _check_messages(fields["messages"], where)
    if answered and "completion" in fields:
        raise DataError(f"{where}: the row has a completion and a final assistant message; give one of them")
    if "completion" in fields:
        _text(fields, "completion", rules, where)
    elif rules.labelled and not answered:
        raise DataError(f"{where}: the messages end without an assistant turn and there is no completion to learn")


def _check_preference(fields: Mapping[str, Any], rules: RowRules, where: str) -> None:
    if "messages" not in fields:
        _text(fields, "prompt", rules, where)
    elif "prompt" in fields:
        raise DataError(f"{where}: the row has both prompt and messages; give one of them")
    elif _check_messages(fields["messages"], where):
        raise DataError(
            f"{where}: the messages end with the assistant's turn; end them with the turn that chosen answers"
        )
    given = [name for name in ("chosen", "rejected") if rules.labelled or name in fields]
    for name in given:
        _text(fields, name, rules, where)
    if len(given) == 2 and fields["chosen"] == fields["rejected"]:
        raise DataError(f"{where}: chosen and rejected are the same text; there is nothing to prefer")


def _check_embedding(fields: Mapping[str, Any], rules: RowRules, where: str) -> None:
    _text(fields, "text", rules, where)
    if rules.labelled or "positive" in fields:
        _text(fields, "positive", rules, where)
    if "negative" not in fields:
        return
    _text(fields, "negative", rules, where)
    for name in ("text", "positive"):
        if fields.get(name) == fields["negative"]:
            raise DataError(
                f"{where}: negative is the row's own {name}; a negative is a text that shall lie far from it"
            )


def _check_messages(messages: Any, where: str) -> bool:
    """Check the shape of `messages`; say whether they end with an answer."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{where}: messages is {_show(messages)}; expected a list of {{"role", "content"}} objects')
    for index, turn in enumerate(messages):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
            raise DataError(f"{where}: messages[{index}] is {_show(turn)}; expected an object with role and content")
        others = [name for name, value in turn.items() if name not in ("role", "content") and value is not None]
        if others:
            raise DataError(f"{where}: messages[{index}] has {others[0]!r}; only role and content are supported")
        if turn["role"] not in ROLES:
            raise DataError(f"{where}: messages[{index}] has role {turn['role']!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(turn["content"], str):
            raise DataError(f"{where}: messages[{index}] has content {_show(turn['content'])}; expected text")
    if all(turn["role"] == "assistant" for turn in messages):
        raise DataError(f"{where}: messages hold no turn but the assistant's; there is nothing to answer")
    return bool(messages[-1]["role"] == "assistant")


_CHECKS: Mapping[Kind, Callable[[Mapping[str, Any], RowRules, str], None]] = {
    "classification": _check_classification,
    "multilabel": _check_multilabel,
    "generation": _check_generation,
    "preference": _check_preference,
    "embedding": _check_embedding,
}


def _present(fields: Mapping[str, Any], name: str, rules: RowRules, where: str) -> Any:
    if name not in fields:
        raise DataError(f"{where}: the field {name!r} is missing; expected {expected(rules)}")
    return fields[name]


def _text(fields: Mapping[str, Any], name: str, rules: RowRules, where: str) -> None:
    value = _present(fields, name, rules, where)
    if not isinstance(value, str):
        hint = "; write a JSON answer as a string" if name in ("completion", "chosen", "rejected") else ""
        raise DataError(f"{where}: {name} is {_show(value)}; expected text{hint}")


def _label(value: Any, where: str) -> str:
    if isinstance(value, (bool, int, float)):
        raise DataError(f'{where}: label {_show(value)} is a number; labels are names, so quote it: "{_bare(value)}"')
    if not isinstance(value, str):
        raise DataError(f"{where}: label {_show(value)} is not text; expected one label name")
    if not value.strip():
        raise DataError(f"{where}: label {value!r} is empty; labels are non-empty names")
    return value


def _known(label: str, rules: RowRules, where: str) -> None:
    if rules.labels is None or label in rules.labels:
        return
    near = difflib.get_close_matches(label, rules.labels, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the labels are {_listed(rules.labels)}"
    raise DataError(f"{where}: unknown label {label!r}; {hint}")


def _identity(given: Mapping[str, Any], where: str) -> str | None:
    value = given.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{where}: id is {_show(value)}; expected a non-empty text or a whole number")
    return str(value)


def _source(given: Mapping[str, Any], where: str) -> str | None:
    value = given.get("source")
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: source is {_show(value)}; expected text")
    return value


def _weight(given: Mapping[str, Any], where: str) -> float:
    value = given.get("weight", 1.0)
    if not _is_number(value) or not 0 < value < math.inf:
        raise DataError(f"{where}: weight is {_show(value)}; expected a number above 0 (leave the row out otherwise)")
    return float(value)


def _probs(given: Mapping[str, Any], rules: RowRules, where: str) -> dict[str, float] | None:
    probs = given.get("probs")
    if probs is None:
        return None
    if rules.kind not in LABELLED:
        raise DataError(f"{where}: probs are for classification and multilabel rows; {rules.kind} has none")
    if not isinstance(probs, Mapping) or not probs:
        raise DataError(f"{where}: probs is {_show(probs)}; expected an object of label: probability")
    # A table's struct column has a key for every label and null where a row says nothing of it.
    stated = {str(label): value for label, value in probs.items() if value is not None}
    for label, value in stated.items():
        _known(_label(label, where), rules, where)
        if not _is_number(value) or not 0 <= value <= 1:
            raise DataError(f"{where}: probs gives {label!r} {_show(value)}; expected a number from 0 to 1")
    total = math.fsum(stated.values())
    if rules.kind == "classification" and abs(total - 1) > 1e-3:
        raise DataError(f"{where}: probs sum to {total:.4g}; the probabilities of a classification row sum to 1")
    return {label: float(value) for label, value in stated.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _show(value: Any) -> str:
    """Quote a value as JSON, shortened."""
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= 80 else shown[:77] + "…"


def _bare(value: Any) -> str:
    return json.dumps(value)


def _listed(labels: Collection[str]) -> str:
    names = sorted(labels)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
