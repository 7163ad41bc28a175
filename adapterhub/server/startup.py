"""What a server loads before it is ready: which base, and the adapters it was asked to have at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.base.catalog import DEFAULT_BASE
from adapterhub.errors import AdapterHubError, RefNotFound, UsageError
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version
from adapterhub.runtime.hub import AdapterHub

from .log import LOG


@dataclass(frozen=True)
class HubOptions:
    """What to serve: a base (None: the registry's own), a registry, refs to load at once, and the engine's size."""

    registry: Path
    base: str | None = None
    adapters: tuple[str, ...] = ()
    threads: int | None = None
    max_rows: int = 32
    resident: int = 32
    host_bytes: int = 1 << 30
    prefix_bytes: int = 256 << 20
    weights: Mapping[str, float] = field(default_factory=dict)


def open_hub(options: HubOptions) -> AdapterHub:
    """Load base and adapters; raises UsageError, and what the hub raises for a base or an adapter it cannot load."""
    registry = Registry(options.registry)
    base = options.base or choose_base(registry, options.adapters)
    hub = AdapterHub(
        base,
        registry,
        threads=options.threads,
        max_rows=options.max_rows,
        resident=options.resident,
        host_bytes=options.host_bytes,
        prefix_bytes=options.prefix_bytes,
        weights=options.weights,
    )
    try:
        _keep(hub, options.adapters, options.resident)
    except BaseException:
        hub.close()
        raise
    return hub


def _keep(hub: AdapterHub, refs: Sequence[str], resident: int) -> None:
    """Load what `refs` name, and pin it where others still find room beside it."""
    hub.load(refs)
    tasks = {target.digest: ref for ref in refs if (target := hub.target(ref)).digest is not None}
    if len(tasks) >= resident:
        LOG.warning(
            "%d adapters are to be at hand and %d can be ready to run: none is pinned, and any may be loaded again; "
            "allow more with --max-adapters",
            len(tasks),
            resident,
        )
        return
    for ref in tasks.values():
        hub.pin(ref)


def choose_base(registry: Registry, adapters: Sequence[str]) -> str:
    """Return the base of the adapters asked for, else of all tasks, else the default one.

    Raises UsageError where the tasks lie on several bases, or on one that has no name elsewhere.
    """
    versions = [registry.resolve(ref) for ref in adapters] or _latest(registry)
    bases = {version.base_fingerprint: version.base for version in versions}
    if not bases:
        return DEFAULT_BASE
    if len(bases) > 1:
        names = ", ".join(sorted({repr(name) for name in bases.values()}))
        raise UsageError(f"the tasks lie on {len(bases)} bases ({names}) and one server has one; choose with --base")
    (base,) = bases.values()
    if base.startswith("local/"):
        raise UsageError(f"the tasks were trained on the base folder {base.removeprefix('local/')!r}; give its --base")
    return base


def _latest(registry: Registry) -> list[Version]:
    """Return a version of every task; what is broken is told and left out, it must not keep the others away."""
    found: list[Version] = []
    try:
        tasks = registry.tasks()
    except RefNotFound:
        return found
    for task in tasks:
        try:
            found.append(registry.versions(task)[-1])
        except AdapterHubError as error:
            LOG.warning("task %s is left out: %s", task, error)
    return found
