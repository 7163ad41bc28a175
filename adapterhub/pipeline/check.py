"""A recipe and its data looked over before training: everything wrong, everything odd, and what it will take."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from adapterhub.base.catalog import CATALOG
from adapterhub.base.source import Base, open_base
from adapterhub.curation.across import looked_for, near_pairs, normalised_pairs
from adapterhub.data.example import Example, collect_labels, gold_labels
from adapterhub.data.files import read_examples
from adapterhub.data.output import Output
from adapterhub.data.prompt import input_text
from adapterhub.errors import AdapterHubError, BaseNotFound
from adapterhub.labeling.prompts import read_voters
from adapterhub.labeling.rules import check_syntax
from adapterhub.labeling.votes import read_votes
from adapterhub.recipe import LABELLED, Kind, Recipe, load_recipe
from adapterhub.registry.store import Registry
from adapterhub.training.answers import check_contrast, check_learnable, class_factors, target_of

from .check_output import output_warnings
from .check_pairs import PAIRED, count_texts, pair_warnings
from .curated import check_target
from .elsewhere import serving_warnings
from .estimate import Estimate, estimate, measure_lengths
from .labelled import bare, known_labels, voters_file
from .prepare import make_output, make_spec
from .splits import OUTSIDE, held_out_of, outside_name, read_outside

Found = TypeVar("Found")
Asked = ParamSpec("Asked")
# What a warning begins with that says that what is measured was learnt from.
LEAK = "LEAK: "
LEAVE_OUT = "`adapterhub data dedup` with --against leaves such rows out"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?")


@dataclass(frozen=True)
class SplitReport:
    """A split as read: where from, how many rows, how many of each label, and of pairs how many different texts."""

    source: str
    rows: int
    labels: Mapping[str, int]
    texts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """What was found about one recipe file. With `problems` it would not train; `warnings` deserve a look.

    `note` says why there is no estimate.
    """

    file: str
    task: str | None = None
    kind: str | None = None
    base: str | None = None
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    estimate: Estimate | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the recipe would train."""
        return not self.problems

    @property
    def leaks(self) -> bool:
        """Whether rows that are measured on are learnt from too."""
        return any(warning.startswith(LEAK) for warning in self.warnings)

    def to_record(self) -> dict[str, Any]:
        """Return a record ready for JSON."""
        splits = {
            name: {
                "source": split.source,
                "rows": split.rows,
                "labels": dict(split.labels),
                "texts": dict(split.texts),
            }
            for name, split in self.splits.items()
        }
        return {
            "file": self.file,
            "ok": self.ok,
            "task": self.task,
            "kind": self.kind,
            "base": self.base,
            "splits": splits,
            "problems": self.problems,
            "warnings": self.warnings,
            "estimate": self.estimate.to_record() if self.estimate else None,
            "note": self.note,
        }


def check_recipe(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> Report:
    """Return everything found about a recipe file; nothing people got wrong is raised.

    With `registry`, that includes a task that is bound to another base there.
    """
    report = Report(str(path))
    recipe = _collect(report, load_recipe, path, overrides)
    if recipe is None:
        return report
    report.task, report.kind, report.base = recipe.task, recipe.kind, recipe.base
    report.warnings += serving_warnings(recipe)
    splits = _read_splits(recipe, report)
    labels = _check_labels(recipe, splits, report)
    outside = _read_outside(recipe, report)
    _check_texts(recipe, {**splits, **outside}, report)
    if "train" in splits and "validation" not in splits and recipe.data.validation is None:
        _hold_out(recipe, splits, report)
    if recipe.labelling is not None:
        _check_voters(recipe, report)
    elif not report.problems:
        _collect(report, _check_learnable, recipe, labels, splits["train"])
    output = _collect(report, make_output, recipe)
    base = _open_base(recipe, report)
    _collect(report, check_target, recipe)
    if base is not None and output is not None:
        _collect(report, _check_output, report, recipe, base, output, splits)
    if base is not None:
        if registry is not None:
            _collect(report, registry.check_base, recipe.task, base.fingerprint)
        if {"validation", *(name for name, _ in recipe.data.splits())} <= splits.keys():
            if recipe.labelling is None or labels:
                report.estimate = _collect(report, _estimate, recipe, base, labels, {**splits, **outside})
            else:
                report.note = "labels are made when it trains; with labels.names there is an estimate before"
    return report


def _collect(report: Report, step: Callable[Asked, Found], *args: Asked.args, **options: Asked.kwargs) -> Found | None:
    """Run `step`; put what people got wrong among the problems."""
    try:
        return step(*args, **options)
    except AdapterHubError as error:
        report.problems += [line for line in str(error).splitlines() if line not in report.problems]
        return None


def _read_splits(recipe: Recipe, report: Report) -> dict[str, list[Example]]:
    """Read every split that can be read; the first wrong row of each of the others is a problem."""
    splits: dict[str, list[Example]] = {}
    for name, source in recipe.data.splits():
        examples = _collect(report, _read, recipe, name, source)
        if examples is not None:
            splits[name] = examples
            labels, texts = _count_labels(examples, recipe.kind), count_texts(examples, recipe.kind)
            report.splits[name] = SplitReport(source, len(examples), labels, texts)
    return splits


def _read_outside(recipe: Recipe, report: Report) -> dict[str, list[Example]]:
    """Read the out-of-scope rows, by their name in the recipe, as `_read_splits` reads the others."""
    found: dict[str, list[Example]] = {}
    for split, source in recipe.data.outside():
        examples = _collect(report, read_outside, recipe.resolve(source), recipe.kind)
        if examples is not None:
            found[outside_name(split)] = examples
            report.splits[outside_name(split)] = SplitReport(source, len(examples), {})
    return found


def _read(recipe: Recipe, split: str, source: str) -> list[Example]:
    path = recipe.resolve(source)
    if split == "train" and recipe.labelling is not None:
        return [bare(row) for row in read_examples(path, recipe.kind, labelled=False)]
    return list(read_examples(path, recipe.kind, labels=known_labels(recipe)))


def _check_voters(recipe: Recipe, report: Report) -> None:
    """Read the files of voters as far as nothing of them runs."""
    assert recipe.labelling is not None
    for name in recipe.labelling.voters:
        path = _collect(report, voters_file, recipe, name)
        if path is None:
            continue
        if path.suffix == ".csv":
            _collect(report, read_votes, path)
        elif path.suffix == ".py":
            _collect(report, check_syntax, path)
        else:
            _collect(report, read_voters, path)


def _count_labels(examples: Iterable[Example], kind: Kind) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for example in examples:
        counts.update(gold_labels(example, kind))
    return dict(sorted(counts.items()))


def _check_labels(recipe: Recipe, splits: Mapping[str, Sequence[Example]], report: Report) -> tuple[str, ...]:
    """Return the task's labels; what training would refuse is a problem, what it cannot learn a warning."""
    if recipe.kind not in LABELLED or "train" not in splits:
        return ()
    if recipe.labelling is not None:
        return known_labels(recipe) or ()
    learnt = collect_labels(splits["train"], recipe.kind)
    labels = recipe.label_names or learnt
    if missing := [label for label in labels if label not in learnt]:
        report.warnings.append(
            f"labels: {_some(missing)} in no training row, so {'it' if len(missing) == 1 else 'they'} cannot be learnt"
        )
    for examples in splits.values():
        unknown = sorted({*collect_labels(examples, recipe.kind)} - {*labels})
        if unknown:
            first = next(row.where for row in examples if unknown[0] in collect_labels([row], recipe.kind))
            report.problems.append(f"{first}: unknown label {unknown[0]!r}; no row of {recipe.data.train} has it")
    return labels


def _hold_out(recipe: Recipe, splits: dict[str, list[Example]], report: Report) -> None:
    """Take validation out of train, as training will; where it cannot, that is a problem."""
    divided = _collect(report, held_out_of, splits["train"], recipe)
    if divided is not None:
        splits["train"], splits["validation"] = divided


def _check_learnable(recipe: Recipe, labels: Sequence[str], train: Sequence[Example]) -> None:
    targets = [target_of(example, recipe.kind, labels) for example in train]
    check_learnable(targets, recipe.kind, labels)
    if recipe.kind == "embedding":
        check_contrast(example.positive for example in train)
    if recipe.training.class_weights is not None:
        class_factors(targets, recipe.training.class_weights, labels)


def _check_texts(recipe: Recipe, splits: Mapping[str, Sequence[Example]], report: Report) -> None:
    """Warn of empty texts, of texts that come twice, and of splits that share texts."""
    seen: dict[str, dict[str, list[Example]]] = {}
    for name, examples in splits.items():
        by_text = _collect(report, _by_text, recipe, examples)
        if by_text is not None:
            seen[name] = by_text
            report.warnings += _text_warnings(report.splits[name].source, recipe.kind, by_text)
    for first, second in combinations(seen, 2):
        # What validation and test share is measured twice, but was not learnt from; nor are rows out of scope.
        leak = LEAK if first == "train" and not second.startswith(OUTSIDE) else ""
        shared = [text for text in seen[second] if text in seen[first]]
        if shared:
            example = seen[second][shared[0]][0]
            torn = second.startswith(OUTSIDE) and not first.startswith(OUTSIDE)
            so = "rows out of scope have no label" if torn else f"{second} metrics will flatter; {LEAVE_OUT}"
            report.warnings.append(
                f"{leak}{second} and {first} share {_count(len(shared), 'text')}, the first at "
                f"{example.where} ({_short(shared[0])}); {so}"
            )
        report.warnings += _like_warnings(first, second, seen[first], seen[second], leak)


def _like_warnings(
    first: str, second: str, one: Mapping[str, Sequence[Example]], other: Mapping[str, Sequence[Example]], leak: str
) -> Iterator[str]:
    """Say which texts of the second split are all but in the first; those that are in it were told of."""
    left = [text for text in other if text.strip() and text not in one]
    known = [text for text in one if text.strip()]
    same = normalised_pairs(known, left)
    gone = {text for text, _ in same}
    left = [text for text in left if text not in gone]
    if left and not looked_for(known, left):
        yield (
            f"{second} and {first} have {len(known) + len(left):,} texts, too many to look here for those that are "
            "nearly the same; `adapterhub data dedup` with --against does"
        )
    near = list(near_pairs(known, left))
    for pairs, what in ((same, "are equal but for case and punctuation"), (near, "are nearly the same")):
        if pairs:
            text, like = pairs[0]
            yield (
                f"{leak}{_count(len(pairs), 'text')} of {second} and {first} {what}, the first at "
                f"{other[text][0].where} ({_short(text)} and {_short(like)}); {LEAVE_OUT}"
            )


def _by_text(recipe: Recipe, examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Group rows by what the base reads. Raises DataError where the prompt's template asks for a missing field."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(input_text(example, recipe.kind, recipe.prompt.template), []).append(example)
    return groups


def _text_warnings(source: str, kind: Kind, by_text: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    blank = [row for text, rows in by_text.items() if not text.strip() for row in rows]
    if blank:
        yield f"{source}: {_count(len(blank), 'row')} with an empty text, the first at {blank[0].where}"
    if kind in PAIRED:
        yield from pair_warnings(source, kind, by_text)
        return
    twice = [rows for text, rows in by_text.items() if len(rows) > 1 and text.strip()]
    if twice:
        extra = sum(len(rows) - 1 for rows in twice)
        yield f"{source}: {_count(extra, 'row')} with the text of an earlier one, the first at {twice[0][1].where}"
    torn = [rows for rows in twice if len({_answer(row, kind) for row in rows}) > 1]
    if torn:
        yield (
            f"{source}: {_count(len(torn), 'text')} with different answers, the first at {torn[0][0].where} "
            f"and {next(row for row in torn[0] if _answer(row, kind) != _answer(torn[0][0], kind)).where}"
        )


def _answer(example: Example, kind: Kind) -> object:
    return example.completion if kind == "generation" else frozenset(gold_labels(example, kind))


def _open_base(recipe: Recipe, report: Report) -> Base | None:
    name = recipe.base
    try:
        name = recipe.base_name
        return open_base(name, fetch=False)
    except BaseNotFound as error:
        if name in CATALOG or _HUB_ID.fullmatch(name):
            report.note = f"base {name!r} is not on this machine; for estimates, run `adapterhub base pull {name}`"
        else:
            report.problems.append(f"{recipe.path}: {error}")
    except AdapterHubError as error:
        report.problems.append(f"{recipe.path}: {error}")
    return None


def _check_output(
    report: Report, recipe: Recipe, base: Base, output: Output, splits: Mapping[str, Sequence[Example]]
) -> None:
    from adapterhub.base.load import load_tokenizer

    report.warnings += output_warnings(output, load_tokenizer(base, recipe.pad_token), splits)


def _estimate(
    recipe: Recipe, base: Base, labels: Sequence[str], splits: Mapping[str, Sequence[Example]]
) -> Estimate | None:
    from adapterhub.base.load import load_tokenizer

    spec = make_spec(recipe, base, labels)
    tokenizer = load_tokenizer(base, recipe.pad_token)
    if recipe.curate is not None:
        # Which rows stay is found out when it trains; so many of them do.
        kept = max(1, round(recipe.curate.keep * len(splits["train"])))
        splits = {**splits, "train": splits["train"][:kept]}
    lengths = {name: measure_lengths(tokenizer, spec, rows) for name, rows in splits.items()}
    return estimate(recipe, base, spec, lengths["train"], lengths["validation"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more are" if len(names) > 5 else " is" if len(names) == 1 else " are"
    return ", ".join(map(repr, names[:5])) + more


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
