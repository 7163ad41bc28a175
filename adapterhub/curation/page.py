"""A page of rows for people: of every class the hardest, easiest, most typical and most suspicious, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.registry.disk import replacing

from .rows import Rows

_SHOWN = 8
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h2{border-bottom:1px solid #ccc;margin-top:2.5rem}h3{margin:1rem 0 .2rem;font-size:1rem}"
    "table{border-collapse:collapse;width:100%}td{padding:.15rem .5rem;vertical-align:top;border-top:1px solid #eee}"
    "td:first-child{white-space:nowrap;color:#666;width:9rem;font-variant-numeric:tabular-nums}"
)
# Which score says who is hard, by preference.
_HARDNESS = ("el2n", "loss", "margin", "forgetting")


def write_page(
    path: Path,
    title: str,
    rows: Rows,
    scores: Mapping[str, np.ndarray],
    suspects: Mapping[int, Mapping[str, Any]],
) -> None:
    """Write the page in one step. `scores` are float32 [rows] each; `suspects` say what is suggested for which row."""
    names, labels = rows.label_indices()
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        file.write(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>')
        file.write(f"<style>{_STYLE}</style><h1>{escape(title)}</h1>")
        file.write(f"<p>{len(rows):,} rows, {len(names)} labels, {len(suspects):,} suspicious rows.</p>")
        for place, name in (*enumerate(names), (-1, "without a label")):
            members = np.flatnonzero(labels == place)
            if len(members):
                file.write(f"<h2>{escape(name)} ({len(members):,})</h2>")
                for part in _parts(rows, members, scores, suspects):
                    file.write(part)
        file.write("</html>\n")


def _parts(
    rows: Rows, members: np.ndarray, scores: Mapping[str, np.ndarray], suspects: Mapping[int, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield a heading with a table for everything that the scores say of a class's rows."""
    doubtful = np.array([row for row in members if int(row) in suspects], np.int64)
    hardness = next((name for name in _HARDNESS if name in scores), None)
    if len(doubtful) and hardness:
        yield _table(
            "Most suspicious: another label is credible", rows, doubtful, scores[hardness], suspects, most=True
        )
    known = None if hardness is None else members[~np.isnan(scores[hardness][members])]
    if known is not None and hardness is not None and len(known):
        yield _table(f"Hardest, by {hardness}", rows, known, scores[hardness], suspects, most=True)
        yield _table(f"Easiest, by {hardness}", rows, known, scores[hardness], suspects, most=False)
    if "influence" in scores:
        told = members[~np.isnan(scores["influence"][members])]
        yield _table("Most influence towards the target", rows, told, scores["influence"], suspects, most=True)
        yield _table("Least influence", rows, told, scores["influence"], suspects, most=False)
    if "prototype" in scores:
        yield _table("Most typical", rows, members, scores["prototype"], suspects, most=False)
        yield _table("Least typical", rows, members, scores["prototype"], suspects, most=True)


def _table(
    title: str,
    rows: Rows,
    members: np.ndarray,
    values: np.ndarray,
    suspects: Mapping[int, Mapping[str, Any]],
    *,
    most: bool,
) -> str:
    order = members[np.argsort(-values[members] if most else values[members], kind="stable")][:_SHOWN]
    lines = []
    for row in order.tolist():
        hint = f" <b>perhaps {escape(str(suspects[row]['suggested']))}</b>" if row in suspects else ""
        lines.append(f"<tr><td>{values[row]:.3f}</td><td>{escape(rows.text(row))}{hint}</td></tr>")
    return f"<h3>{escape(title)}</h3><table>{''.join(lines)}</table>"
