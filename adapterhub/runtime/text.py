"""From tokens to text as they come: whole characters only, and nothing that may still turn out to be a stop."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_BROKEN = "�"
# Tokens after which bytes that are still no character are taken as they are: no character is nearly that long.
_LONGEST_WAIT = 64
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


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
        pending = len(self._ids) - self._done
        if hold_broken and text.endswith(_BROKEN) and pending < _LONGEST_WAIT:
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


def token_bytes(tokenizer: Any, token: int) -> bytes | None:
    """Return the bytes a token stands for, None where the tokenizer does not tell."""
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if _BROKEN not in text:
        return text.encode()
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if match := _BYTE_TOKEN.fullmatch(piece):
        return bytes.fromhex(match[1])
    table = _byte_letters()
    return bytes(table[letter] for letter in piece) if all(letter in table for letter in piece) else None


@cache
def _byte_letters() -> dict[str, int]:
    """Return the byte behind each letter of byte-level BPE: printable Latin-1 as itself, the rest from U+0100 on.

    Radford et al. 2019 (GPT-2), whose tokenizer all byte-level ones follow.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}
