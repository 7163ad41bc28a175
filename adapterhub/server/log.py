"""The server's logger, and lines for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

LOG = logging.getLogger("adapterhub.server")


class JsonLines(logging.Formatter):
    """Every record as one JSON object: time, level, logger, and a request's fields or else the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        fields = getattr(record, "request", None)
        line |= fields if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
