"""Between rows and the prefix cache: what a row takes from it, and what it leaves behind."""

from __future__ import annotations

import logging
from functools import partial

from .kv_cache import KVCache
from .prefix_cache import Namespace, PrefixCache
from .request import Row
from .tally import Tally

log = logging.getLogger(__name__)


class PrefixReuse:
    """Saves rows the beginnings of prompts that an earlier row of the same adapter ran.

    `fingerprint` and `identity` say on which base and in which arithmetic the states were computed.
    """

    def __init__(
        self, kept: PrefixCache, cache: KVCache | None, fingerprint: str, identity: str, tally: Tally | None = None
    ) -> None:
        self._tally = tally or Tally()
        self._kept, self._cache = kept, cache
        self._fingerprint, self._identity = fingerprint, identity

    def restore(self, row: Row) -> None:
        """Write what is known of the row's prompt into its place; the row goes on from there."""
        assert self._cache is not None
        assert row.place is not None
        states = self._kept.match(self._namespace(row), row.request.tokens)
        if states is not None:
            self._cache.write(row.place, 0, states)
            row.computed = states.shape[3]
            counts = self._tally.of(row.request.digest)
            counts.prefix_hits += 1
            counts.prefix_tokens += row.computed

    def keep(self, row: Row) -> None:
        """Copy the row's prompt, and of its answer what already ran (all but the last token), while it has its place.

        Only for rows whose logits were finite: what a broken adapter computed is handed on to nobody.
        """
        assert self._cache is not None
        assert row.place is not None
        tokens = row.request.tokens + tuple(row.output[:-1])
        try:
            self._kept.add(self._namespace(row), tokens, partial(self._cache.read, row.place))
        except (MemoryError, RuntimeError):  # a copy for later; the answer at hand does not need it
            log.exception("the beginning of a prompt was not kept")

    def _namespace(self, row: Row) -> Namespace:
        return Namespace(self._fingerprint, self._identity, row.request.digest)
