"""`adapterhub registry import|export`: versions in and out, as PEFT folders and as archives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.base import base_progress
from adapterhub.cli.hub import BaseOption, LabelsOption, PadTokenOption, report, split_labels
from adapterhub.cli.shared import JsonOption, RegistryOption, emit, say

from .tables import RefArgument, open_registry


def register(group: typer.Typer) -> None:
    """Add the commands to the group."""
    group.command("import")(import_command)
    group.command("export")(export_command)


def import_command(
    folder: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder that PEFT's save_pretrained wrote, or an exported archive.")
    ],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task it becomes a version of.")],
    base: BaseOption = None,
    labels: LabelsOption = None,
    pad_token: PadTokenOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an adapter folder, or an archive, against its base and publish it as a version of a task.

    Only safetensors are read. What cannot be served exactly (changed embeddings, other tensors than the
    configuration says, …) is refused with the reason.
    """
    from adapterhub.pipeline.adopt import Request, adopt

    request = Request(task, base=base, labels=split_labels(labels), pad_token=pad_token, paths=True)
    with base_progress() as progress:
        published = adopt(folder, open_registry(registry), request, progress)
    report(published, as_json=as_json)


def export_command(
    ref: RefArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The archive; else TASK-DIGEST.tar here.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as one tar archive: equal versions give equal bytes, and import checks every one of them."""
    from adapterhub.registry.archive import export
    from adapterhub.registry.bundle import folder_name

    version = open_registry(registry).resolve(ref)
    target = Path(f"{version.task}-{folder_name(version.digest)}.tar") if out is None else out
    sha256 = export(version, target)
    if as_json:
        emit({**version.to_record(), "archive": str(target.absolute()), "sha256": sha256})
    else:
        say(f"{version.ref} is in {target} (sha256 {sha256})")
