"""What strangers are told of what went wrong."""

from __future__ import annotations

import pytest

from adapterhub.errors import CorruptAdapter, RefNotFound
from adapterhub.server.errors import describe


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no task 'x' in '/srv/my models/registry'; close", "no task 'x' in '…/registry'; close"),
        ("/srv/registry/tone/1f/task.json is not JSON: line 1", "…/task.json is not JSON: line 1"),
        ("cannot read '/srv/a/b.safetensors': it's gone", "cannot read '…/b.safetensors': it's gone"),
        ("another process writes (lock /srv/a/.lock)", "another process writes (lock …/.lock)"),
        ("ask it at /v1/embeddings or /v1/completions", "ask it at /v1/embeddings or /v1/completions"),
        ("'a/b' at https://example.org/c/d is 1/2 of it", "'a/b' at https://example.org/c/d is 1/2 of it"),
        ("the schema has no '#/$defs/a' and no \"#/$defs/b\"", "the schema has no '#/$defs/a' and no \"#/$defs/b\""),
        ("see '/v1/chat/completions' and /health", "see '/v1/chat/completions' and /health"),
    ],
)
@pytest.mark.parametrize("kind", [RefNotFound, CorruptAdapter])
def test_folders_of_the_machine_are_left_out(kind: type[Exception], said: str, told: str) -> None:
    status, body = describe(kind(said))
    assert body["error"]["message"] == told
    assert (status, body["error"]["param"]) == (kind.status, "model")  # type: ignore[attr-defined]
