"""What a load's timings come to: throughput, percentiles, errors, and whether the server kept up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .drive import Load
from .timing import Timing

PERCENTS = (50, 90, 99)
# What a server that is too busy answers; other errors say that something is wrong with the question.
_TOO_BUSY = frozenset({"429", "503", "timeout"})
_LOST = 0.05


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile of `values` (not empty, any order), interpolated between two of them as NumPy does."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Spread:
    """The percentiles of one time, in seconds; by percent."""

    count: int
    mean: float
    percentiles: Mapping[int, float]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of those that are not None; None where all are."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        at = {percent: percentile(found, percent) for percent in PERCENTS}
        return cls(len(found), math.fsum(found) / len(found), at)

    def to_record(self) -> dict[str, float]:
        """Return count, mean and p50, p90, p99, as `--json` prints them."""
        return {"count": self.count, "mean": self.mean, **{f"p{key}": each for key, each in self.percentiles.items()}}


@dataclass(frozen=True)
class Measured:
    """One load and what came of it. Times of answers that did not come whole count in `errors` alone."""

    load: Load
    timings: Sequence[Timing]
    sent: int
    seconds: float
    interrupted: bool = False

    @property
    def answered(self) -> list[Timing]:
        """Return those that were answered whole."""
        return [each for each in self.timings if each.error is None]

    @property
    def errors(self) -> dict[str, int]:
        """Return how many failed, by HTTP status or by `timeout`, `connection`, `stream`; most frequent first."""
        return dict(Counter(each.error for each in self.timings if each.error is not None).most_common())

    @property
    def messages(self) -> dict[str, str]:
        """Return what was said of the first failure of each kind."""
        found: dict[str, str] = {}
        for each in self.timings:
            if each.error is not None:
                found.setdefault(each.error, each.message)
        return found

    @property
    def requests_per_second(self) -> float:
        """Return whole answers over the time from the beginning to the last one's end."""
        return len(self.answered) / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Return tokens of whole answers over the same time."""
        return sum(each.tokens for each in self.answered) / self.seconds if self.seconds > 0 else 0.0

    @property
    def first_token(self) -> Spread | None:
        """Return seconds to the first text."""
        return Spread.of(each.first_token for each in self.answered)

    @property
    def token(self) -> Spread | None:
        """Return seconds a token after the first."""
        return Spread.of(each.token for each in self.answered)

    @property
    def latency(self) -> Spread | None:
        """Return seconds to the whole answer."""
        return Spread.of(each.latency for each in self.answered)

    @property
    def saturated(self) -> bool:
        """Whether more arrived than the server could take; always False without a rate, where askers wait for it.

        Looks at the second half of the arrivals, when a server that keeps up has about as many requests under way at
        the end as at the beginning. It is saturated where those under way grew, or were refused (429, 503, timeouts),
        by more than a twentieth of those that arrived and by more than chance explains (two standard deviations of a
        difference of Poisson counts, whose variance is their sum). Too few requests therefore never show it, nor does
        a load whose first half is over before the quickest answer.
        """
        if self.load.rate is None or not self.timings or self.interrupted:
            return False
        end = max(each.start for each in self.timings)
        middle = end / 2
        if min((each.latency for each in self.answered), default=0.0) > middle:
            return False
        then, now = self._under_way(middle), self._under_way(end)
        late = [each for each in self.timings if each.start > middle]
        refused = sum(each.error in _TOO_BUSY for each in late)
        return now - then + refused > _LOST * len(late) + 2 * math.sqrt(then + now + refused)

    def _under_way(self, at: float) -> int:
        # One that a busy server sent away at once is counted as refused, not here.
        return sum(each.start <= at < each.end for each in self.timings if each.error not in _TOO_BUSY)

    def to_record(self) -> dict[str, Any]:
        """Return everything but the single timings, as `--json` prints it; times in seconds."""
        spreads = {
            "first_token_seconds": self.first_token,
            "token_seconds": self.token,
            "latency_seconds": self.latency,
        }
        answered = self.answered
        return {
            "rate": self.load.rate,
            "concurrency": None if self.load.rate is not None else self.load.concurrency,
            "sent": self.sent,
            "answered": len(answered),
            "errors": self.errors,
            "messages": self.messages,
            "seconds": self.seconds,
            "requests_per_second": self.requests_per_second,
            "tokens_per_second": self.tokens_per_second,
            "prompt_tokens": sum(each.prompt_tokens for each in answered),
            "tokens": sum(each.tokens for each in answered),
            **{name: None if each is None else each.to_record() for name, each in spreads.items()},
            "models": dict(Counter(each.model for each in answered).most_common()),
            "saturated": self.saturated,
            "interrupted": self.interrupted,
        }
