"""`adapterhub push` and `adapterhub pull`: versions to the Hugging Face Hub and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import UsageError

from .base import base_progress
from .shared import JsonOption, RegistryOption, console, emit

if TYPE_CHECKING:
    from adapterhub.registry.version import Published

BaseOption = Annotated[
    str | None, typer.Option("--base", metavar="NAME", help="Base of the adapter; else the one its config names.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option("--labels", metavar="A,B,C", help="Labels of a plain PEFT classifier, in the order of its logits."),
]
PadTokenOption = Annotated[
    str | None,
    typer.Option("--pad-token", metavar="TOKEN", help="Pad token, for a plain PEFT adapter on a base without."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(push)
    app.command()(pull)


def split_labels(text: str | None) -> list[str] | None:
    """Return the labels of `--labels a,b,c`."""
    return None if text is None else [label.strip() for label in text.split(",")]


def push(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="The version: TASK, TASK@3, TASK@prod or TASK@sha256:ab12.")
    ],
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo", metavar="ORG/NAME", help="Repository, created if it is missing; else the task's name in yours."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create it private; refuse one that is public.")] = False,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME", help="Tag of the commit; else v3 for version 3, and so on.")
    ] = None,
    probes: Annotated[
        bool, typer.Option("--probes", help="Push the version's probes too: a few rows of its data, for verify --run.")
    ] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Push a version to the Hugging Face Hub as one tagged commit, with its card and a model card.

    Pushing again what is there does nothing. HF_TOKEN and HF_ENDPOINT are honoured; `hf auth login` works too.
    """
    from adapterhub.pipeline.share import push as share
    from adapterhub.registry.store import Registry

    store = Registry(Registry.locate(registry))
    pushed = share(ref, repo, store, private=private, tag=tag, probes=probes)
    how = "is now at" if pushed.commit.changed else "was there already:"
    said = f"{pushed.version.ref} {how} {pushed.commit.url} (tag {pushed.tag})"
    console().print(said, markup=False, highlight=False)
    if as_json:
        emit(pushed.to_record())


def pull(
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME[@REVISION]", help="An adapter repository on the Hub.")],
    task: Annotated[
        str | None,
        typer.Option("--as", metavar="TASK", help="The task it becomes a version of; else NAME in lower case."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit, as behind the @; else main.")
    ] = None,
    base: BaseOption = None,
    labels: LabelsOption = None,
    pad_token: PadTokenOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pull an adapter from the Hugging Face Hub and publish it as a version of a task.

    What `adapterhub push` put there keeps its digest; any other PEFT adapter is checked against its base and imported.
    """
    from adapterhub.pipeline.adopt import Request
    from adapterhub.pipeline.share import pull as fetch
    from adapterhub.registry.store import Registry

    repo, _, behind = repo.partition("@")
    if behind and revision:
        raise UsageError(f"the revision is {behind!r} behind the @ and {revision!r} in --revision; give one of them")
    name = repo.rpartition("/")[2].lower() if task is None else task
    request = Request(name, base=base, labels=split_labels(labels), pad_token=pad_token)
    revision = behind or revision
    with base_progress() as progress:
        published = fetch(repo, Registry(Registry.locate(registry)), request, revision=revision, progress=progress)
    report(published, as_json=as_json)


def report(published: Published, *, as_json: bool) -> None:
    """Say what was published, to people and, if asked, to scripts."""
    how = "published" if published.created else "was there already"
    console().print(f"{published.ref} {how} ({published.digest[:23]})", markup=False, highlight=False)
    if as_json:
        emit({**published.to_record(), "created": published.created})
