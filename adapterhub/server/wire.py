"""JSON as it goes out: compact, UTF-8, and never `NaN`."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


def dump(value: Any) -> bytes:
    """Return compact UTF-8 JSON; raises ValueError for NaN or infinity, which JSON does not have."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def event(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + dump(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Json(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return dump(content)
