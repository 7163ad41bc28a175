"""`adapterhub improve`: one round of the way back, from feedback to a better version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import JsonOption, RegistryOption, SetOption, console, emit

if TYPE_CHECKING:
    from adapterhub.pipeline.improve import Improved


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(improve)


def improve(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The task's recipe.")],
    feedback: Annotated[
        list[Path],
        typer.Option("--feedback", metavar="FILE", help="The feedback.jsonl that a server kept. Repeatable."),
    ],
    alias: Annotated[str, typer.Option(help="The alias to improve on, and to move.")] = "prod",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train from nothing instead of from the current version.")
    ] = False,
    share: Annotated[
        float,
        typer.Option("--held", min=0.0, max=0.9, help="Share of the feedback to measure on, never to learn from."),
    ] = 0.25,
    registry: RegistryOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a task again with its feedback, compare with the current version, and promote only if better.

    Feedback replaces the label of a training row that asks the same, and is added otherwise. Both versions answer the
    recipe's test rows and the feedback that is held out; the alias moves where the new one is right on more of them.
    """
    from adapterhub.data.feedback import read_feedback
    from adapterhub.pipeline.improve import improve as improved
    from adapterhub.recipe import load_recipe
    from adapterhub.registry.store import Registry

    from .train_progress import progress_for

    loaded = load_recipe(recipe, overrides or ())
    lines = [line for path in feedback for line in read_feedback(path)]
    store = Registry(Registry.locate(registry))
    found = improved(loaded, lines, store, progress_for(console()), alias=alias, fresh=fresh, share=share)
    if as_json:
        emit(found.to_record())
    _print(found, alias)


def _print(found: Improved, alias: str) -> None:
    new = found.new.published
    what = f"is {new.task}@{alias} now" if found.promoted else f"was not promoted; {new.task}@{alias} stays as it is"
    console().print(f"{new.ref} {what}: {found.why}", markup=False, highlight=False)
