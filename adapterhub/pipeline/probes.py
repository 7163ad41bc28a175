"""Probes: a few inputs and what a version answered when it was published, so that it can be asked again.

A hash proves that files are the same; it cannot see another base, tokenizer, library or kernel answering otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.data.example import Example, asked_of
from adapterhub.errors import AdapterHubError, CorruptAdapter
from adapterhub.registry.bundle import PROBES_FILE
from adapterhub.registry.store import Registry
from adapterhub.registry.verify import Problem
from adapterhub.registry.version import Version

from .bases import Bases

if TYPE_CHECKING:
    from adapterhub.runtime.hub import AdapterHub
    from adapterhub.runtime.target import Prediction, Target

# How far answers may lie from those that were kept: dtypes and kernels differ in the last digits of float32, in the
# second of bfloat16; what people would notice lies above.
MOST_PROBABILITY_DRIFT = 0.02
LEAST_COSINE = 0.999
COMPLETION_TOKENS = 32


@dataclass(frozen=True)
class Probe:
    """What was asked, and the record of the answer."""

    fields: Mapping[str, Any]
    answer: Mapping[str, Any]


def choose_probes(examples: Sequence[Example], count: int) -> list[Example]:
    """Return `count` rows spread evenly over `examples`, or all where there are fewer."""
    count = min(count, len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]


def take_probes(hub: AdapterHub, target: Target, examples: Sequence[Example], kind: str) -> str:
    """Ask `examples`, rows of a recipe's kind; return what PROBES_FILE holds: a line of JSON a probe, nothing gold."""
    asked = [asked_of(example, kind) for example in examples]
    return "".join(
        json.dumps({"fields": fields, "answer": _rounded(answer.to_record())}, ensure_ascii=False, sort_keys=True)
        + "\n"
        for fields, answer in zip(asked, _answers(hub, target, asked), strict=True)
    )


def read_probes(version: Version) -> list[Probe]:
    """Return a version's probes, empty where it keeps none; raises CorruptAdapter."""
    text = version.attached(PROBES_FILE)
    try:
        # Not splitlines: a text may hold other characters that end a line.
        records = [json.loads(line) for line in (text or "").split("\n") if line]
        return [Probe(dict(record["fields"]), _checked(record["answer"])) for record in records]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptAdapter(f"{PROBES_FILE} of {version.ref} holds something else than probes: {error!r}") from error


def replay_all(registry: Registry, ref: str | None = None, bases: Bases | None = None) -> list[Problem]:
    """Replay the probes of one version, or of every version of every task, base by base.

    Each is asked in the precision it was made in, so that rounding is no drift.
    """
    from adapterhub.runtime.hub import AdapterHub

    if ref is not None:
        versions = [registry.resolve(ref)]
    else:
        versions = [version for task in registry.tasks() for version in registry.versions(task)]
    bases = Bases() if bases is None else bases
    groups: dict[tuple[str, str], list[Version]] = {}
    found: list[Problem] = []
    for version in versions:
        try:
            groups.setdefault((version.base_fingerprint, _precision(version)), []).append(version)
        except AdapterHubError as error:
            found.append(Problem(version.ref, str(error)))
    for (_, precision), group in groups.items():
        try:
            base = bases.of(group[0])
        except AdapterHubError as error:
            found += [Problem(version.ref, f"its base cannot be had: {error}") for version in group]
            continue
        with AdapterHub(base, registry, precision=precision) as hub:
            for version in group:
                try:
                    found += replay(hub, version)
                except AdapterHubError as error:
                    found.append(Problem(version.ref, str(error)))
    return found


def replay(hub: AdapterHub, version: Version) -> Iterator[Problem]:
    """Ask a version's probes again; yield a problem for each answered otherwise, or a note where it has none."""
    probes = read_probes(version)
    if not probes:
        yield Problem(version.ref, "keeps no probes, so only its files could be checked", note=True)
        return
    try:
        answers = list(_answers(hub, hub.target(version.ref), [probe.fields for probe in probes]))
    except AdapterHubError as error:
        yield Problem(version.ref, f"its probes cannot be answered: {error}")
        return
    for number, (probe, answer) in enumerate(zip(probes, answers, strict=True), 1):
        if (drift := _drift(probe.answer, answer.to_record())) is not None:
            yield Problem(
                version.ref,
                f"probe {number} of {len(probes)} is answered otherwise than when it was published: {drift}; something "
                "below the adapter has changed: libraries (card.json has those of then), tokenizer, base or kernels",
            )


def _precision(version: Version) -> str:
    said = version.card().training.get("precision")
    return said if said in ("float32", "bfloat16") else "auto"


def _answers(hub: AdapterHub, target: Target, asked: Sequence[Mapping[str, Any]]) -> Iterator[Prediction]:
    writes = target.spec is not None and target.spec.kind == "generation"
    options: dict[str, Any] = {"max_tokens": COMPLETION_TOKENS} if writes else {}
    return hub.answers(target, asked, **options)


def _checked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer of the shape that `take_probes` writes; raises what reading another shape raises."""
    found = dict(answer)
    if "vector" in found:
        found["vector"] = [float(each) for each in [*found["vector"]]]
    elif "probs" in found:
        found["probs"] = {str(label): float(chance) for label, chance in found["probs"].items()}
    else:
        found["completion"] = str(found["completion"])
    return found


def _rounded(value: Any) -> Any:
    """Return a record with numbers as people can read them: six digits are far below what is compared."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _drift(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say how an answer differs, None where it does not."""
    if "vector" in was:
        cosine = _cosine(was["vector"], now.get("vector", ()))
        return None if cosine >= LEAST_COSINE else f"its vector turned to a cosine of {cosine:.4f}"
    if "probs" not in was:
        return None if was == now else f"{was.get('completion')!r:.80} became {now.get('completion')!r:.80}"
    probs, moved = now.get("probs", {}), 0.0
    for label, chance in was["probs"].items():
        moved = max(moved, abs(chance - probs.get(label, math.inf)))
    # A label on the edge may fall either way as long as the probabilities are the same.
    return f"a probability moved by {moved:.3f}" if moved > MOST_PROBABILITY_DRIFT else None


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        return 0.0
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other) or 1.0)
