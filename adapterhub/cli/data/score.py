"""`adapterhub data score`: how hard, typical and suspicious each row is, in a file and on a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.shared import JsonOption, emit, names_in, say

from .common import (
    BaseOption,
    DecoderOption,
    FileArgument,
    KindOption,
    OutOption,
    PoolingOption,
    SeedOption,
    TargetOption,
    TemplateOption,
    check_target,
    features_of,
    influence_on,
    read,
)

if TYPE_CHECKING:
    import numpy as np

    from adapterhub.curation.outlook import Outlook

ScoresOption = Annotated[
    str | None,
    typer.Option(
        "--by", metavar="A,B", help="el2n, forgetting, margin, loss, prototype, influence; else all but the last."
    ),
]


_VERDICT = ("suspect", "suggested")


def register(group: typer.Typer) -> None:
    """Add the command to the group."""
    group.command("score")(score)


def score(
    file: FileArgument,
    out: OutOption,
    by: ScoresOption = None,
    target: TargetOption = None,
    decoder: DecoderOption = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="The HTML page; else OUT with .html behind it.")
    ] = None,
    base: BaseOption = None,
    pooling: PoolingOption = None,
    kind: KindOption = None,
    template: TemplateOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write every row with its `scores`, and a page of the hardest, easiest, most typical and most suspicious ones.

    All but prototype need labels. A row is `suspect` where heads that did not see it find another label credible and
    likelier than its own; `suggested` is that label. `influence` is how much a row would teach of what the rows of
    --target ask. Nothing is dropped.
    """
    import numpy as np

    from adapterhub.curation.output import check_output, write_rows
    from adapterhub.curation.page import write_page
    from adapterhub.curation.scores import INFLUENCE, NEEDS_LABELS, SCORES, check_scores, score_rows

    page = out.with_name(out.name + ".html") if page is None else page
    check_output(out, file, target, page=page)
    asked = names_in(by) or None
    check_scores(asked or ())
    check_target(target, decoder, influence=asked is not None and INFLUENCE in asked)
    rows = read([file], kind, template)
    names, labels = rows.label_indices()
    labelled = np.flatnonzero(labels >= 0)
    wanted = [n for n in SCORES if len(names) > 1 or n == "prototype"] if asked is None else asked
    judged = [name for name in wanted if name != INFLUENCE]
    features = features_of(rows.texts(), len(rows), base, pooling)[0] if judged else np.empty((len(rows), 0))
    outlook = _judge(features, labels, labelled, len(names), seed) if NEEDS_LABELS & {*wanted} else None
    scores = score_rows(features, labels, len(names), judged, outlook=outlook, seed=seed)
    if target is not None:
        scores[INFLUENCE] = influence_on(rows, target, decoder)[0]
    suspects = _suspects(labelled, outlook, names)

    def scored(row: int, record: dict[str, Any]) -> dict[str, Any]:
        before = {name: value for name, value in record.items() if name not in _VERDICT}  # of an earlier run
        return {**before, "scores": _values(scores, row), **suspects.get(row, {})}

    write_rows(out, rows, range(len(rows)), scored)
    write_page(page, file.name, rows, scores, suspects)
    say(f"{len(rows):,} rows with their scores are in {out}, the page is {page}")
    noise = None if outlook is None else round(outlook.noise, 4)
    if outlook is not None:
        say(f"heads that did not see a row say {outlook.accuracy:.1%} of the labels; {outlook.noise:.1%} are suspect")
    if as_json:
        emit({"rows": len(rows), "scores": wanted, "suspect": noise, "out": str(out), "page": str(page)})


def _judge(features: np.ndarray, labels: np.ndarray, labelled: np.ndarray, classes: int, seed: int) -> Outlook | None:
    """Return what heads that did not see a labelled row say of it; None where there is one label only."""
    from adapterhub.curation.clusters import picked
    from adapterhub.curation.outlook import look_out

    return look_out(picked(features, labelled), labels[labelled], classes, seed) if classes > 1 else None


def _values(scores: dict[str, np.ndarray], row: int) -> dict[str, float]:
    """Return a row's scores, without those it has not."""
    return {name: round(float(values[row]), 5) for name, values in scores.items() if values[row] == values[row]}


def _suspects(rows: np.ndarray, outlook: Outlook | None, names: tuple[str, ...]) -> dict[int, dict[str, Any]]:
    """Return what is written beside each suspect row."""
    if outlook is None:
        return {}
    flagged = [place for place in range(len(rows)) if outlook.suspect[place]]
    return {int(rows[at]): {"suspect": True, "suggested": names[outlook.rival[at]]} for at in flagged}
