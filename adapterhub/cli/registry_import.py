"""`adapterhub registry import`: a PEFT folder made elsewhere becomes a version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .base import base_progress
from .hub import BaseOption, LabelsOption, PadTokenOption, report, split_labels
from .registry import registry_app
from .shared import JsonOption, RegistryOption


def register(app: typer.Typer) -> None:
    """Add the command to the registry group, which `app` has or will get."""
    if all(command.callback is not import_command for command in registry_app.registered_commands):
        registry_app.command("import")(import_command)


def import_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that PEFT's save_pretrained wrote.")],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task it becomes a version of.")],
    base: BaseOption = None,
    labels: LabelsOption = None,
    pad_token: PadTokenOption = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an adapter folder against its base and publish it as a version of a task.

    Only safetensors are read. What cannot be served exactly (changed embeddings, other tensors than the
    configuration says, …) is refused with the reason.
    """
    from adapterhub.pipeline.adopt import Request, adopt
    from adapterhub.registry.store import Registry

    request = Request(task, base=base, labels=split_labels(labels), pad_token=pad_token, paths=True)
    with base_progress() as progress:
        published = adopt(folder, Registry(Registry.locate(registry)), request, progress)
    report(published, as_json=as_json)
