"""From tokens to text as they come: whole characters only, and nothing that may still turn out to be a stop."""

from __future__ import annotations

from typing import Any

_BROKEN = "�"


class Detokenizer:
    """Turns token ids into text piece by piece.

    A token may end inside a UTF-8 character, and some tokenizers space a token by its neighbours, so text is decoded
    from a little before what was already given out (as Hugging Face's text-generation-inference does).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = self._done = 0

    def add(self, token: int) -> str:
        """Return the text that is certain once `token` is there."""
        self._ids.append(token)
        return self._text(hold_broken=True)

    def flush(self) -> str:
        """Return what was held back."""
        return self._text(hold_broken=False)

    def _text(self, *, hold_broken: bool) -> str:
        known = self._decode(self._ids[self._from : self._done])
        text = self._decode(self._ids[self._from :])
        if len(text) <= len(known) or (hold_broken and text.endswith(_BROKEN)):
            return ""
        self._from, self._done = self._done, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopFilter:
    """Passes text on up to the first stop string; holds back an end that may be the start of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Return what may be shown now; `stopped` is set once a stop string was met."""
        if self.stopped:
            return ""
        self._held += text
        hits = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if hits:
            self.stopped = True
            shown, self._held = self._held[: min(hits)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """Return what was held back; the text has ended."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)
