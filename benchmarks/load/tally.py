"""What became of every request: each is answered, refused, left by us, or something is wrong."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """What was asked and decides the answer: a writer's prompt, a text to label, or a text for a vector.

    `digest` names the version that answered, "" the base. `route` is "chat", "text", "labels" or "vectors".
    """

    route: str
    task: str
    digest: str
    prompt: str
    max_tokens: int = 0


@dataclass
class Tally:
    """Counts by kind of client, latencies over time, and answers to be judged."""

    begun: float = field(default_factory=time.perf_counter)
    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    # (kind, when it was sent, seconds)
    times: list[tuple[str, float, float]] = field(default_factory=list)
    said: dict[Asked, set[object]] = field(default_factory=lambda: defaultdict(set))

    @contextmanager
    def request(self, kind: str) -> Iterator[None]:
        """Count a request; whatever is raised on its way is a wrong end of it."""
        self.sent[kind] += 1
        started = time.perf_counter()
        try:
            yield
        except Exception as error:  # every problem is told at the end, and none ends the load
            self.wrong.append(f"{kind}: {type(error).__name__}: {error}"[:500])
            return
        self.times.append((kind, started - self.begun, time.perf_counter() - started))

    @property
    def ended(self) -> int:
        """How many ended as they should."""
        return sum((self.answered + self.refused + self.left).values())

    def to_record(self) -> dict[str, object]:
        """Return the counts."""
        kinds = sorted(self.sent)
        return {
            "sent": self.sent.total(),
            "answered": self.answered.total(),
            "refused": self.refused.total(),
            "left": self.left.total(),
            "kinds": {
                kind: [self.sent[kind], self.answered[kind], self.refused[kind], self.left[kind]] for kind in kinds
            },
            "wrong": self.wrong,
        }
