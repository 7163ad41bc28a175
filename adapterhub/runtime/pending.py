"""An answer that is on its way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from adapterhub.errors import AdapterHubError, Cancelled

T = TypeVar("T")
Given = TypeVar("Given")

# How often a waiter looks whether its asker has gone away.
_LOOK_SECONDS = 0.05


@dataclass
class Pending(Generic[T]):
    """An answer in the making: whoever makes it calls `give`, whoever wants it calls `wait`.

    `on_cancel` tells the maker that nobody wants it any more.
    """

    on_cancel: Callable[[], None] = lambda: None
    _done: threading.Event = field(default_factory=threading.Event)
    _answer: T | Exception | None = None

    def give(self, answer: T | Exception) -> None:
        """Set the answer; the first one counts."""
        if self._answer is None:
            self._answer = answer
        self._done.set()

    @property
    def done(self) -> bool:
        """True once there is an answer."""
        return self._done.is_set()

    def wait(self, cancelled: threading.Event | None = None) -> T:
        """Return the answer or raise the error it ended in; raises Cancelled once `cancelled` is set."""
        if cancelled is None:
            self._done.wait()
        else:
            while not cancelled.is_set() and not self._done.wait(_LOOK_SECONDS):
                pass
            if cancelled.is_set():
                raise Cancelled("the asker has gone away")
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        """Give up on it."""
        if not self.done:
            self.on_cancel()
            self.give(Cancelled("the answer is no longer wanted"))


def start_each(start: Callable[[Given], Pending[T]], inputs: Iterable[Given]) -> Iterator[Pending[T]]:
    """Yield what `start` makes of each input; an error ends the line in its proper place, after what came before it."""
    try:
        for each in inputs:
            yield start(each)
    except AdapterHubError as error:
        failed = Pending[T]()
        failed.give(error)
        yield failed
