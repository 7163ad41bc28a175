"""`adapterhub keys` as people run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.cli.main import run
from adapterhub.server.keys import KeyFile, hash_key
from adapterhub.server.ledger import Ledger, day_of, ledger_of


def keys(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        run(["keys", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out, " ".join(err.split())


def test_create_list_revoke(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    monkeypatch.setenv("ADAPTERHUB_KEYS", str(path))
    monkeypatch.setenv("COLUMNS", "200")
    limits = ["--requests-per-minute", "60", "--tokens-per-day", "5000"]
    code, out, err = keys(capsys, "create", "shop", "--task", "orders", "--task", "[bold]tone", *limits)
    assert code == 0
    assert "once" in err
    (made,) = KeyFile(path).read()
    assert made.sha256 == hash_key(out.strip().encode())
    assert (made.tasks, made.requests_per_minute, made.tokens_per_day) == (("orders", "[bold]tone"), 60, 5000)
    code, out, _ = keys(capsys, "create", "boss", "--admin", "--json")
    told = json.loads(out)
    assert told["admin"] is True
    assert told["sha256"] == hash_key(told["key"].encode())

    code, out, err = keys(capsys, "list")
    assert (code, out) == (0, "")
    assert "[bold]tone" in err
    assert told["key"] not in err
    ledger = Ledger(ledger_of(path))
    ledger.take(made.id, day_of(ledger.clock()), 42, None)
    ledger.close()
    _, out, _ = keys(capsys, "list", "--json")
    assert [(each["name"], each["tokens_today"]) for each in json.loads(out)] == [("shop", 42), ("boss", 0)]

    code, _, err = keys(capsys, "revoke", "shop")
    assert code == 0
    assert "revoked" in err
    _, out, _ = keys(capsys, "revoke", "boss", "--json")
    assert json.loads(out)["revoked_at"] is not None
    assert all(key.revoked_at for key in KeyFile(path).read())


def test_which_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ADAPTERHUB_KEYS", raising=False)
    code, _, err = keys(capsys, "create", "shop")
    assert code == 2
    assert "ADAPTERHUB_KEYS" in err
    code, _, err = keys(capsys, "list", "--keys", str(tmp_path / "none"))
    assert code == 1
    assert "keys create" in err
