"""Makers of common labelling functions: words, regular expressions, dictionaries, length, models, neighbours.

Each returns a labelling function. Assigned to a variable of the file it takes that name; elsewhere, in a list say, give
it one: `name="…"`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adapterhub.errors import UsageError

from .functions import ABSTAIN, LabelingFunction, ModelFunction, Models, Vote


def keywords(
    label: str, words: Iterable[str], *, least: int = 1, case: bool = False, name: str | None = None
) -> LabelingFunction:
    """Vote `label` where at least so many different ones of `words` (or phrases) occur, as whole words."""
    given = _words(words)
    if least < 1:
        raise UsageError(f"keywords for {label!r}: least is {least}; expected 1 or more")
    found = _matcher(given, case)

    def vote(example: Any) -> Vote:
        there = {match.group() if case else match.group().casefold() for match in found.finditer(example.text)}
        return label if len(there) >= least else ABSTAIN

    return LabelingFunction(name, vote)


def pattern(label: str, regex: str, *, flags: int = re.IGNORECASE, name: str | None = None) -> LabelingFunction:
    """Vote `label` where the regular expression is found in the text; it ignores case unless `flags` say so."""
    try:
        found = re.compile(regex, flags)
    except re.error as error:
        raise UsageError(f"pattern for {label!r}: {regex!r} is not a regular expression: {error}") from error

    def vote(example: Any) -> Vote:
        return label if found.search(example.text) else ABSTAIN

    return LabelingFunction(name, vote)


def dictionary(labels: Mapping[str, str], *, case: bool = False, name: str | None = None) -> LabelingFunction:
    """Vote the label that most of the words in the text stand for; abstain where there are none, or two labels tie."""
    found = _matcher(_words(labels), case)
    meaning = {word if case else word.casefold(): label for word, label in labels.items()}

    def vote(example: Any) -> Vote:
        words = (match.group() if case else match.group().casefold() for match in found.finditer(example.text))
        # Some letters match without case and still fold differently, a dotless i for one; they mean nothing here.
        counts = Counter(meaning[word] for word in words if word in meaning).most_common(2)
        if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
            return ABSTAIN
        return counts[0][0]

    return LabelingFunction(name, vote)


def length(
    label: str, *, least: int | None = None, most: int | None = None, unit: str = "words", name: str | None = None
) -> LabelingFunction:
    """Vote `label` where the text has at least `least` and at most `most` words, or characters (`unit`)."""
    if unit not in ("words", "characters"):
        raise UsageError(f"length for {label!r}: the unit is {unit!r}; expected 'words' or 'characters'")
    if least is None and most is None:
        raise UsageError(f"length for {label!r}: give least, most or both")

    def vote(example: Any) -> Vote:
        size = len(example.text) if unit == "characters" else len(example.text.split())
        return label if (least is None or size >= least) and (most is None or size <= most) else ABSTAIN

    return LabelingFunction(name, vote)


def model(
    predict: str | Callable[[str], Any],
    *,
    least: float = 0.0,
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> LabelingFunction | ModelFunction:
    """Vote what another model says, where its probability is `least` or more.

    `predict` is the ref of a classification version in the registry, or any function of a text that returns a label, or
    a pair of label and probability. `labels` turns its labels into yours; those it does not name are abstains.
    """

    def vote(said: str, chance: float) -> Vote:
        mine = said if labels is None else labels.get(said)
        return ABSTAIN if mine is None or chance < least else mine

    if isinstance(predict, str):
        ref = predict

        def ask(models: Models, texts: Sequence[str]) -> list[Vote]:
            return [vote(said, chance) for said, chance in models.predict(ref, texts)]

        return ModelFunction(name, "ref", ref, ask)

    def answer(example: Any) -> Any:
        said = predict(example.text)
        return vote(*said) if isinstance(said, tuple) else said if said is ABSTAIN else vote(said, 1.0)

    return LabelingFunction(name, answer)


def nearest(
    rows: Iterable[tuple[str, str]],
    *,
    base: str = "all-minilm-l6-v2",
    count: int = 3,
    cosine: float = 0.5,
    share: float = 0.6,
    name: str | None = None,
) -> ModelFunction:
    """Vote the label of the nearest labelled texts: `rows` are (text, label) pairs.

    Near is by the cosine of the base's features. Of the `count` nearest, those of at least `cosine` vote; abstain where
    there are none, or where the label most of them have holds less than `share` of them.
    """
    labelled = tuple((str(text), str(label)) for text, label in rows)
    if not labelled:
        raise UsageError("nearest: there are no labelled rows; give (text, label) pairs")
    if count < 1:
        raise UsageError(f"nearest: count is {count}; expected 1 or more")

    def ask(models: Models, texts: Sequence[str]) -> list[Vote]:
        import numpy as np

        vectors = np.asarray(models.features(base, [*(text for text, _ in labelled), *texts]), dtype=np.float32)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        known = vectors[: len(labelled)]
        return [vote(known @ vector) for vector in vectors[len(labelled) :]]

    def vote(cosines: Any) -> Vote:
        near = [row for row in (-cosines).argsort(kind="stable")[:count] if cosines[row] >= cosine]
        if not near:
            return ABSTAIN
        counts = Counter(labelled[row][1] for row in near).most_common(2)
        tied = len(counts) == 2 and counts[0][1] == counts[1][1]
        return ABSTAIN if tied or counts[0][1] < share * len(near) else counts[0][0]

    return ModelFunction(name, "base", base, ask)


def _words(words: Iterable[str]) -> tuple[str, ...]:
    if isinstance(words, str):
        raise UsageError(f"the words are one text, {words[:40]!r}; give a list of words")
    given = tuple(dict.fromkeys(words))
    if not given or not all(isinstance(word, str) and word.strip() for word in given):
        raise UsageError(f"the words are {given!r:.80}; expected one word or more, none of them empty")
    return given


def _matcher(words: Sequence[str], case: bool) -> re.Pattern[str]:
    # The longest first, so that "not at all" is found before "not"; \b would miss words that begin with a sign ("$5").
    choices = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{choices})(?!\w)", 0 if case else re.IGNORECASE)
