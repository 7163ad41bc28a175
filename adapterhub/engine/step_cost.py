"""What a step costs before its first token, in tokens: learnt from the steps that ran."""

from __future__ import annotations

# Before anything is known: what a decoder of 135M parameters showed on two cores of a server's processor.
USUAL = 8.0
# Accelerators read their weights for hundreds of tokens; what is beyond these bounds is noise.
_LEAST, _MOST = 2.0, 1024.0
# Larger steps are left out: products of many tokens run faster for each, and what is asked of the line is small steps.
_LARGEST = 64
# A step counts half as much after about 140 others.
_KEPT = 0.995


class StepCost:
    """A line through (tokens, seconds) of recent small steps, by least squares with weights that fade.

    `fixed` is where it meets the axis over its slope: a step of n tokens takes as long as `fixed` + n tokens do.
    """

    def __init__(self) -> None:
        self.fixed = USUAL
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """Take in a step that ran; large ones are ignored."""
        if tokens > _LARGEST:
            return
        self._weight = _KEPT * self._weight + 1
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + seconds
        self._squares = _KEPT * self._squares + tokens * tokens
        self._products = _KEPT * self._products + tokens * seconds
        spread = self._weight * self._squares - self._tokens**2
        rise = self._weight * self._products - self._tokens * self._seconds
        # Steps that are all alike tell nothing, and a line that falls is an accident.
        if self._weight > 16 and spread > 0.05 * self._tokens**2 and rise > 0:
            slope = rise / spread
            fixed = (self._seconds - slope * self._tokens) / self._weight / slope
            self.fixed = min(max(fixed, _LEAST), _MOST)
