"""What labelling functions may ask of models: versions of the registry, and features of bases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.base.source import Progress, open_base
from adapterhub.errors import UsageError
from adapterhub.registry.store import Registry

from .audit import text_features
from .bases import Bases
from .measure import likeliest

if TYPE_CHECKING:
    import numpy as np


class OwnModels:
    """What labelling functions may ask: versions of the registry, and features of bases."""

    def __init__(self, registry: Registry | None, progress: Progress | None = None, base: str | None = None) -> None:
        """Look versions up in `registry`, else in the usual one; those made on `base` answer on that."""
        self._registry, self._progress = registry, progress
        self._named = [] if base is None else [base]

    def identity(self, kind: str, name: str) -> str:
        """Return the digest of a version or the fingerprint of a base; raises RefNotFound, BaseNotFound."""
        if kind == "base":
            return open_base(name, progress=self._progress).fingerprint
        return self._versions().resolve(name).digest

    def predict(self, ref: str, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Return the likeliest label of each text and its probability; raises UsageError for other kinds of tasks."""
        from adapterhub.runtime.hub import AdapterHub

        version = self._versions().resolve(ref)
        if (kind := version.spec().kind) != "classification":
            raise UsageError(f"{ref!r} is a {kind} task; only a classification can vote for a label")
        with AdapterHub(Bases(self._named, self._progress).of(version), self._versions()) as hub:
            return [likeliest(each) for each in hub.predict(ref, list(texts))]

    def features(self, base: str, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [texts, dim]."""
        return text_features(open_base(base, progress=self._progress), texts)

    def _versions(self) -> Registry:
        return Registry(Registry.locate()) if self._registry is None else self._registry
