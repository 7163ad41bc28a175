"""Votes that were cast before, by what the function is and what the row says: only what changed runs again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from adapterhub.data.example import Example, content_id
from adapterhub.folders import cache_root


class VoteCache:
    """One file a function, named by its hash, that only ever grows: a line a row, its hash and its vote.

    Lines are written in one step each time, so a killed run leaves what it had done; a line that was cut is skipped.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Use `folder`, else one in the user's cache."""
        self._folder = cache_root() / "votes" if folder is None else folder

    def read(self, function: str) -> dict[str, str | None]:
        """Return the votes of the function with that hash, by row hash; None is an abstain."""
        found: dict[str, str | None] = {}
        try:
            text = self._path(function).read_text("utf-8", errors="replace")
        except OSError:
            return found
        for line in text.splitlines():
            try:
                row, vote = json.loads(line)
            except (ValueError, TypeError):
                continue
            if isinstance(row, str) and (vote is None or isinstance(vote, str)):
                found[row] = vote
        return found

    def add(self, function: str, votes: Mapping[str, str | None]) -> None:
        """Keep votes by row hash."""
        if not votes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(each) + "\n" for each in votes.items())
        path = self._path(function)
        # A line break first where an earlier run was cut in the middle of a line.
        torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (("\n" if torn else "") + lines).encode("utf-8"))
        finally:
            os.close(handle)

    def _path(self, function: str) -> Path:
        return self._folder / f"{function}.jsonl"


def row_hash(example: Example) -> str:
    """Return 16 hex digits of what a row says: all but its id and its place."""
    said = {"fields": dict(example.fields), "weight": example.weight, "source": example.source}
    return content_id({**said, "probs": None if example.probs is None else dict(example.probs)})
