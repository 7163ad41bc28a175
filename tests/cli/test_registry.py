from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from adapterhub.cli.registry import register
from adapterhub.data.output import Output
from adapterhub.errors import Conflict, RefNotFound, UsageError
from adapterhub.registry.bundle import hash_file
from adapterhub.registry.store import Registry
from tests.registry.making import make_card, make_folder

CALIBRATION = {"temperature": 1.5, "temperature_reason": "fitted on 9 rows"}


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    store = Registry(tmp_path / "registry")
    metrics = {"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}}
    card = make_card(labels=("[red]odd", "even"), metrics=metrics, description="Routes mail.", calibration=CALIBRATION)
    store.publish("mail", make_folder(tmp_path / "a", b"one"), card)
    store.publish("mail", make_folder(tmp_path / "b", b"two"), card)
    store.publish("tone", make_folder(tmp_path / "c", b"three"), make_card())
    store.alias("mail", "prod", "mail@1")
    return store


def invoke(store: Registry, *arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["registry", *arguments, "--registry", str(store.root)])


def ask(store: Registry, *arguments: str) -> Any:
    """Return the JSON of a command, which must be all there is on stdout."""
    result = invoke(store, *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_resolve_prints_what_scripts_read(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.root.parent)
    found = ask(Registry(Path("registry")), "resolve", "mail@latest")
    version = store.resolve("mail@2")
    assert found == {"task": "mail", "version": 2, "digest": version.digest, "path": str(version.path)}
    assert Path(found["path"]).is_absolute()


def test_list(store: Registry) -> None:
    tasks = ask(store, "list")
    assert [(row["task"], row["versions"], row["latest"], row["aliases"]) for row in tasks] == [
        ("mail", 2, 2, {"prod": 1}),
        ("tone", 1, 1, {}),
    ]
    rows = ask(store, "list", "mail")
    assert [(row["ref"], row["aliases"]) for row in rows] == [("mail@1", ["prod"]), ("mail@2", [])]


def test_one_damaged_task_hides_no_other(store: Registry) -> None:
    (store.root / "mail" / "index.json").write_text("{")
    result = invoke(store, "list", "--json")
    assert result.exit_code == 1
    assert [row["task"] for row in json.loads(result.stdout)] == ["tone"]
    assert "index.json of task 'mail'" in result.stderr


def test_list_opens_no_card(store: Registry) -> None:
    for path in store.root.glob("*/*/card.json"):
        path.unlink()
    assert len(ask(store, "list")) == 2
    assert len(ask(store, "list", "mail")) == 2


def test_show(store: Registry) -> None:
    shown = ask(store, "show", "mail")
    assert (shown["ref"], shown["card"]["metrics"]["accuracy"]["low"]) == ("mail@1", 0.25)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list",), ("mail", "tone", "tiny")),
        (("list", "mail"), ("mail@1", "mail@2", "prod")),
        (("show", "mail@2"), ("mail@2", "Routes mail.", "[red]odd, even", "accuracy: 0.5000 (0.2500 to 0.7500)")),
        (("show", "mail@2"), ("temperature: 1.5", "temperature_reason: fitted on 9 rows")),
        (("resolve", "mail"), ("mail@1", "sha256:")),
        (("alias", "mail", "canary", "mail@2"), ("mail@canary is now mail@2",)),
        (("alias", "mail", "prod", "--remove"), ("mail@prod is removed",)),
        (("verify",), ("as published",)),
    ],
)
def test_people_read_stderr(store: Registry, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = invoke(store, *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def test_show_tells_what_answers_look_like(store: Registry, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", kind="generation", output=Output.choices(["[red]yes", "no"]))
    store.publish("reply", folder, make_card(kind="generation"))
    assert 'choices: ["[red]yes","no"]' in invoke(store, "show", "reply").stderr
    assert "choices" not in invoke(store, "show", "mail").stderr


def test_an_empty_registry_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "none" in invoke(Registry(tmp_path / "empty"), "list").stderr
    assert ask(Registry(tmp_path / "empty"), "list") == []


def test_alias(store: Registry) -> None:
    assert ask(store, "alias", "mail", "prod", "mail@2") == {"task": "mail", "alias": "prod", "version": 2}
    assert store.resolve("mail").version == 2
    assert ask(store, "alias", "mail", "prod", "--remove") == {"task": "mail", "alias": "prod", "version": None}
    for arguments in (("mail", "prod"), ("mail", "prod", "mail@1", "--remove")):
        assert isinstance(invoke(store, "alias", *arguments).exception, UsageError)


def test_verify_says_no_with_exit_code_1(store: Registry) -> None:
    assert ask(store, "verify") == {"ok": True, "problems": [], "notes": []}
    (store.root / "mail" / ".tmp-1").mkdir()
    found = ask(store, "verify")
    assert found["ok"]
    assert len(found["notes"]) == 1
    (store.resolve("mail@2").path / "adapter_model.safetensors").write_bytes(b"twp")
    result = invoke(store, "verify", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert not answer["ok"]
    assert [problem["where"] for problem in answer["problems"]] == ["mail@2"]
    assert invoke(store, "verify", "mail@1").exit_code == 0
    people = invoke(store, "verify", "mail@2")
    assert people.exit_code == 1
    assert "PROBLEM: mail@2" in people.stderr


def test_history_tells_when_and_why(store: Registry) -> None:
    ask(store, "alias", "mail", "prod", "mail@2", "--why", "better on spam")
    moves = ask(store, "history", "mail")
    assert [(move["alias"], move["before"], move["version"], move["why"]) for move in moves] == [
        ("prod", None, 1, ""),
        ("prod", 1, 2, "better on spam"),
    ]
    assert "better on spam" in invoke(store, "history", "mail").stderr
    assert "none" in invoke(store, "history", "tone").stderr


def test_delete_and_gc(store: Registry) -> None:
    assert isinstance(invoke(store, "delete", "mail@1").exception, Conflict)
    version = store.resolve("mail@2")
    assert ask(store, "delete", "mail@2", "--why", "leaked")["digest"] == version.digest
    assert "mail@2, deleted at" in invoke(store, "gc", "--dry-run").stderr
    (freed,) = ask(store, "gc")
    assert freed["path"] == str(version.path)
    assert freed["bytes"] > 0
    assert not version.path.exists()
    assert "removed: none" in invoke(store, "gc").stderr


def test_a_task_without_versions_is_listed_as_such(store: Registry) -> None:
    store.delete("tone@1")
    rows = {row["task"]: row for row in ask(store, "list")}
    assert (rows["tone"]["versions"], rows["tone"]["latest"]) == (0, None)
    assert ask(store, "list", "tone") == []


def test_promote_moves_prod_or_another_alias(store: Registry) -> None:
    moved = ask(store, "promote", "mail@2", "--why", "it is time")
    assert moved == {"task": "mail", "alias": "prod", "version": 2, "comparison": None}
    assert store.history("mail")[-1].why == "it is time"
    assert "mail@canary is now mail@1" in invoke(store, "promote", "mail@1", "--to", "canary").stderr
    assert isinstance(invoke(store, "promote", "mail@1", "--metric", "accuracy").exception, UsageError)
    assert isinstance(invoke(store, "promote", "mail@1", "--data", "x.jsonl").exception, UsageError)
    assert invoke(store, "promote", "mail@1", "--margin", "-1").exit_code == 2


def test_export_writes_an_archive_and_says_its_hash(store: Registry, tmp_path: Path) -> None:
    done = ask(store, "export", "mail@2", "--out", str(tmp_path / "mail.tar"))
    assert done["sha256"] == hash_file(tmp_path / "mail.tar")
    assert (done["ref"], done["archive"]) == ("mail@2", str(tmp_path / "mail.tar"))


def test_an_export_is_named_after_task_and_digest(
    store: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    version = store.resolve("mail")
    assert f"mail@1 is in mail-{version.path.name}.tar" in invoke(store, "export", "mail").stderr
    assert (tmp_path / f"mail-{version.path.name}.tar").is_file()


def test_an_unknown_ref_is_an_error(store: Registry) -> None:
    for command in ("show", "resolve", "verify"):
        result = invoke(store, command, "mial")
        assert isinstance(result.exception, RefNotFound)
        assert "did you mean 'mail'" in str(result.exception)
