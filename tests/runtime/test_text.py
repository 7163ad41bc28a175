"""Tokens to text as they come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.runtime.text import Detokenizer, StopFilter, token_bytes
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.text(max_size=40))
def test_pieces_join_to_the_text_and_hold_no_broken_character(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token) for token in TOKENIZER(text)["input_ids"]]
    assert all("�" not in piece or "�" in text for piece in pieces)
    assert "".join([*pieces, detokenizer.flush()]) == text


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_filter_shows_exactly_what_stands_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stream, shown, rest = StopFilter(tuple(stops)), "", text
    while rest and not stream.stopped:
        size = data.draw(st.integers(1, len(rest)))
        shown, rest = shown + stream.add(rest[:size]), rest[size:]
    shown += "" if stream.stopped else stream.flush()
    hits = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    assert stream.stopped == bool(hits)
    # In pieces, a stop is met when its last letter comes: an earlier-starting but longer one may come too late.
    assert text.startswith(shown)
    assert all(stop not in shown for stop in stops)


@given(st.text(min_size=1, max_size=10))
def test_bytes_of_tokens_join_to_the_bytes_of_the_text(text: str) -> None:
    parts = [token_bytes(TOKENIZER, token) for token in TOKENIZER(text)["input_ids"]]
    assert b"".join(part or b"?" for part in parts) == text.encode()
