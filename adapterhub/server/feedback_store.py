"""The folder of feedback: what was said of answers, and the recent answers that something may be said of."""

from __future__ import annotations

from pathlib import Path

from adapterhub.data.feedback import FeedbackWriter

from .recall import Recall

FILE = "feedback.jsonl"
RECENT = "recent.sqlite"
RECENT_BYTES = 256 << 20


class FeedbackStore:
    """Feedback in `feedback.jsonl` (see adapterhub/data/feedback.py), recent answers beside it."""

    def __init__(self, folder: Path, recent_bytes: int = RECENT_BYTES) -> None:
        self.path = folder / FILE
        self.recall = Recall(folder / RECENT, recent_bytes)
        self.writer = FeedbackWriter(self.path)

    def close(self) -> None:
        """Close the files."""
        self.recall.close()
