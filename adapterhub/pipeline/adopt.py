"""Adapters made elsewhere become versions here: a published version as it is, a plain PEFT folder rewritten."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.base.catalog import CATALOG, refuse_base_name
from adapterhub.base.source import Base, Progress, is_local, open_base
from adapterhub.data.task import TaskSpec
from adapterhub.errors import (
    AdapterHubError,
    BaseMismatch,
    BaseNotFound,
    CorruptAdapter,
    FileMissing,
    HubError,
    UnsafeAdapter,
    UsageError,
)
from adapterhub.registry.archive import is_archive, unpack
from adapterhub.registry.bundle import ATTACHED_FILES, CARD_FILE, TASK_FILE, digest_folder, read_attached, read_text
from adapterhub.registry.card import Card
from adapterhub.registry.model_card import model_card
from adapterhub.registry.provenance import package_versions
from adapterhub.registry.ref import check_task_name
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published

from .canonical import canonical
from .fit import check_on_base, check_rules
from .peft_record import read_record

_BASE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w.-]{1,95})?")
_FOLDER_NAME = re.compile(r"[^/\\\x00-\x1f]{1,255}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Request:
    """How an adapter folder shall be taken in.

    `base` None means the base its configuration names. `labels` are for plain PEFT classifiers, in the order of the
    logits. `source` goes into the card. `paths` lets the configuration name a base by path: never what a stranger sent.
    """

    task: str
    base: str | None = None
    labels: Sequence[str] | None = None
    pad_token: str | None = None
    source: Mapping[str, Any] | None = None
    paths: bool = False


def adopt(folder: Path, registry: Registry, request: Request, progress: Progress | None = None) -> Published:
    """Publish the adapter in `folder`, or in the archive that `registry export` wrote, as a version of a task.

    A folder with task.json and card.json is a version already: it is checked, against its base too where that is on
    this machine, and its digest stays what it was. Any other is a plain PEFT adapter: it is checked against its base
    and written in canonical form. Raises AdapterError and its kinds, FileMissing, BaseNotFound, BaseMismatch,
    NameTaken, UsageError.
    """
    check_new_task(request.task)
    if is_archive(folder):
        with tempfile.TemporaryDirectory(prefix="adapterhub-") as scratch:
            unpack(folder, Path(scratch))
            return adopt(Path(scratch), registry, replace(request, paths=False), progress)
    if folder.is_symlink() or not folder.is_dir():
        raise FileMissing(
            f"{str(folder)!r} is neither a folder with adapter_config.json nor an archive of one; name such a one"
        )
    for path in folder.iterdir():
        if path.is_symlink() and path.suffix in {".json", ".safetensors"}:
            raise UnsafeAdapter(f"{str(path)!r} is a symbolic link; copy the adapter with its files, not links to them")
    if (folder / TASK_FILE).exists():
        return _keep(folder, registry, request, progress)
    return _convert(folder, registry, request, progress)


def check_new_task(name: str) -> str:
    """Return `name` if a task may have it: raises UsageError, or NameTaken where it is a base's."""
    refuse_base_name(check_task_name(name))
    return name


def _keep(folder: Path, registry: Registry, request: Request, progress: Progress | None) -> Published:
    from adapterhub.lora.config import read_config
    from adapterhub.lora.files import parse_weights, read_tensors
    from adapterhub.lora.weights import check_effect

    if request.labels is not None or request.pad_token is not None:
        raise UsageError(
            f"{folder} says its own labels and pad token in {TASK_FILE}; leave --labels and --pad-token out"
        )
    spec = TaskSpec.from_json(read_text(folder / TASK_FILE))
    card = _read_card(folder, spec)
    digest = digest_folder(folder)
    if card.digest != digest:
        raise CorruptAdapter(
            f"the files in {folder} hash to {digest}, but its card says {card.digest!r}; fetch it again"
        )
    tensors = read_tensors(folder)
    weights = parse_weights(read_config(folder), tensors)
    check_effect(weights)
    check_rules(weights, spec)
    base = _kept_base(card, spec, request, progress)
    if base is not None:
        check_on_base(weights, tensors, spec, base)
    extra = {**card.extra, "source": dict(request.source)} if request.source else card.extra
    # A repository may have been given fewer of the attached files than the version had.
    gone = {name for name in ATTACHED_FILES if not (folder / name).exists()}
    attached = read_attached(folder, {name: each for name, each in card.files.items() if name not in gone})
    return registry.publish(request.task, folder, replace(card, extra=extra), attached)


def _kept_base(card: Card, spec: TaskSpec, request: Request, progress: Progress | None) -> Base | None:
    """Return the base a whole version was made on: the one asked for, else the one it names if that is on this machine.

    Raises BaseMismatch where the one asked for is another.
    """
    if request.base is not None:
        base = open_base(request.base, progress=progress)
        if base.fingerprint != spec.base_fingerprint:
            raise BaseMismatch(
                f"the adapter was made on {card.base['name']!r} with fingerprint {spec.base_fingerprint}; "
                f"{base.name!r} has {base.fingerprint}, so its answers would differ: leave --base out"
            )
        return base
    # A stranger's card: no path of it is followed, which is what its public form is for.
    name = str(card.public().base["name"])
    try:
        base = open_base(name, fetch=False, progress=progress)
    except AdapterHubError:
        return None
    return base if base.fingerprint == spec.base_fingerprint else None


def _read_card(folder: Path, spec: TaskSpec) -> Card:
    """Read a stranger's card so strictly that nothing later trips over it."""
    path = folder / CARD_FILE
    if not path.exists():
        raise FileMissing(
            f"{folder} has {TASK_FILE} but no {CARD_FILE}, so it is no whole version; copy all files of the version, "
            f"or remove {TASK_FILE} to import it as a plain PEFT adapter"
        )
    card = Card.from_json(read_text(path))
    try:
        card.public().to_json()
        model_card(card, spec)
        wrong = [key for key in ("name", "public_id", "fingerprint") if not isinstance(card.base[key], str)]
    except Exception as error:  # Whatever a stranger's card makes its readers trip over, it is this file's fault.
        raise CorruptAdapter(f"{path} is not a card that can be read: {error!r}") from error
    if wrong:
        raise CorruptAdapter(f"{path}: base.{wrong[0]} is {card.base[wrong[0]]!r}, expected a text")
    for key, value in (("public_id", card.base["public_id"]), ("name", card.public().base["name"])):
        # A stranger's card: whatever could be a path here is refused, and a name never ends in a folder of ours.
        local = is_local(value) and _FOLDER_NAME.fullmatch(value.partition("/")[2])
        if ".." in value or not (local or _BASE_NAME.fullmatch(value)):
            raise CorruptAdapter(f"{path}: base.{key} is {value!r:.80}, which names no base")
    return card


def _convert(folder: Path, registry: Registry, request: Request, progress: Progress | None) -> Published:
    from adapterhub.lora.files import write_adapter

    record = read_record(folder)
    base = _base_of(folder, record, request, progress)
    registry.check_base(request.task, base.fingerprint)
    made = canonical(folder, base, request.labels, request.pad_token)
    card = Card(
        kind=made.spec.kind,
        base=base.to_card(),
        labels=made.spec.labels,
        packages=package_versions(),
        description="Imported from a PEFT adapter made elsewhere.",
        extra={"source": dict(request.source or {"folder": folder.resolve().name})},
    )
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as scratch:
        target = Path(scratch) / "adapter"
        write_adapter(target, made.config, made.tensors)
        (target / TASK_FILE).write_text(made.spec.to_json(), encoding="utf-8", newline="\n")
        return registry.publish(request.task, target, card)


def _base_of(folder: Path, record: Mapping[str, Any], request: Request, progress: Progress | None) -> Base:
    """Open the base that was asked for, else the one the adapter's configuration names, at the revision it names."""
    if request.base is not None:
        return open_base(request.base, progress=progress)
    named, revision = record.get("base_model_name_or_path"), record.get("revision")
    if not isinstance(named, str) or not named:
        raise BaseNotFound(f"adapter_config.json in {folder} names no base; say which with --base")
    on_hub = _HUB_ID.fullmatch(named) is not None and not is_local(named) and not Path(named).exists()
    if not (request.paths or on_hub):
        raise BaseNotFound(
            f"the adapter names its base as {named!r}, which is a place on its maker's machine; say which with --base"
        )
    try:
        return open_base(f"{named}@{revision}" if on_hub and revision else named, progress=progress)
    except (BaseNotFound, HubError) as error:
        raise BaseNotFound(
            f"the adapter was made for base {named!r}, which could not be had: {error}{_near(named)}"
        ) from error


def _near(named: str) -> str:
    """Say which base of the catalog comes from the one that was named."""
    for entry in CATALOG.values():
        if entry.public_id == named:
            return f". {entry.name!r} is {entry.derived_from}: if its answers will do, say --base {entry.name}"
    return ". Say which base to use with --base"
