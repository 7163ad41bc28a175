"""The base of a version, which may have been a folder: then whoever asks has to say where it is."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.base.source import Base, Progress, open_base
from adapterhub.registry.version import Version


class Bases:
    """Opens what versions were made on: by fingerprint one of `named`, else by the name on the card."""

    def __init__(self, named: Sequence[str] = (), progress: Progress | None = None) -> None:
        """Open the bases that are named; raises BaseNotFound and what opening raises."""
        self._progress = progress
        self._known = {base.fingerprint: base for base in (open_base(name, progress=progress) for name in named)}

    def of(self, version: Version) -> Base:
        """Return a version's base; raises BaseNotFound."""
        fingerprint = version.base_fingerprint
        if fingerprint not in self._known:
            self._known[fingerprint] = open_base(version.base, progress=self._progress)
        return self._known[fingerprint]
