"""A server whose answers wait, as a process of its own.

`python -m tests.server.slow_server DRAIN_SECONDS LOAD_SECONDS` runs it.

`POST /allow/N` lets the waiting answers go on by N tokens; it is no route of the real server.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from adapterhub.server import run
from adapterhub.server.app import create_app
from adapterhub.server.service import Service

from .fake import FakeHub


class SlowHub(FakeHub):
    def stats(self) -> Mapping[str, float]:
        return {"running": float(sum(not stream.ended.is_set() for stream in self.streams))}


def main() -> None:
    hub = SlowHub()

    def app_with_allow(service: Service) -> FastAPI:
        app = create_app(service)

        @app.post("/allow/{tokens}")
        async def allow(tokens: int) -> int:
            hub.allow(tokens)
            return tokens

        return app

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    run.create_app = app_with_allow
    options = run.ServerOptions(port=0, drain_seconds=float(sys.argv[1]))

    def open_hub() -> Any:
        time.sleep(float(sys.argv[2]))
        return hub

    run.serve(open_hub, options, say)


if __name__ == "__main__":
    main()
