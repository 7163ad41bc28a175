"""The door to the Hub: real client, real socket, small local Hub; and the table of errors."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants, errors

from adapterhub.errors import AdapterHubError, Conflict, HubError, NotFound, UsageError
from adapterhub.hub import (
    ADAPTER_FILES,
    cached_snapshot,
    check_repo_id,
    download_adapter,
    download_snapshot,
    open_repo,
    own_name,
    push_folder,
    put_tag,
    tagged,
    translate,
)
from tests.hub_server import READ_TOKEN, HubServer, Trouble

# The client's own uploads use a spelling that its HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

README = b"---\nlibrary_name: peft\n---\n# Card\n"
FILES: dict[str, Path | bytes] = {
    "README.md": README,
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"ab" * 99,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "home")
        yield server


def push(**changes: Any) -> Any:
    settings: dict[str, Any] = {"private": False, "repo_id": "me/tone", "files": FILES, **changes}
    parent = open_repo(settings["repo_id"], private=settings["private"])
    return push_folder(settings["repo_id"], settings["files"], message="publish", parent=settings.get("parent", parent))


def test_push_makes_one_commit_with_all_files_in_the_order_of_the_wire(hub: HubServer) -> None:
    commit = push()
    repo = hub.repos["me/tone"]
    assert [c.message for c in repo.commits] == ["initial commit", "publish"]
    assert repo.head.sha == commit.sha
    assert commit.url == f"{hub.url}/me/tone/commit/{commit.sha}"
    assert {name: repo.head.tree[name] for name in FILES} == FILES
    oid = next(iter(hub.objects))
    assert hub.requests == [
        "POST /api/repos/create",
        "GET /api/models/me/tone",
        "POST /api/validate-yaml",
        "POST /api/models/me/tone/preupload/main",
        "POST /me/tone.git/info/lfs/objects/batch",
        f"PUT /lfs/{oid}",
        "POST /lfs/verify",
        "POST /api/models/me/tone/commit/main",
        "GET /api/models/me/tone/commits/main",
    ]


def test_push_takes_files_from_the_disk(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 5000)
    push(files={"adapter_model.safetensors": path})
    assert hub.repos["me/tone"].head.tree["adapter_model.safetensors"] == b"x" * 5000


def test_pushing_the_same_again_makes_no_commit(hub: HubServer) -> None:
    first, second = push(), push()
    assert second.sha == first.sha
    assert len(hub.repos["me/tone"].commits) == 2


def test_a_push_says_whether_it_changed_anything(hub: HubServer) -> None:
    assert push().changed
    assert not push().changed
    assert push(files={"README.md": README + b"more\n"}).changed


def test_a_tag_names_a_commit_and_does_not_move(hub: HubServer) -> None:
    first = push()
    assert tagged("me/tone", "v1") is None
    put_tag("me/tone", "v1", first.sha)
    push(files={"README.md": README + b"more\n"})
    assert tagged("me/tone", "v1") == first.sha
    with pytest.raises(Conflict):
        put_tag("me/tone", "v1", "main")
    assert download_adapter("me/tone", "v1").commit == first.sha


def test_ones_own_name_is_that_of_the_token(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_name() == "me"
    hub.connect(monkeypatch, tmp_path / "stranger", token=None)
    with pytest.raises(HubError, match="HF_TOKEN"):
        own_name()


def test_a_large_file_goes_in_parts(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 10_000)
    hub.part_bytes = 1_000_000
    push(files={"adapter_model.safetensors": path})
    assert hub.repos["me/tone"].head.tree["adapter_model.safetensors"] == path.read_bytes()
    oid = next(iter(hub.objects))
    assert [each for each in hub.requests if each.startswith("PUT")] == [f"PUT /lfs/{oid}/{n}" for n in (1, 2, 3)]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no time pass while the client waits to try again; return how long it would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)
    return waited


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 0])
@pytest.mark.parametrize("request_", ["PUT /lfs/", "POST .*/commit/main"])
def test_what_passes_is_tried_again(hub: HubServer, patient: list[float], request_: str, status: int) -> None:
    hub.troubles.append(Trouble(request_, status, times=2))
    commit = push()
    assert hub.repos["me/tone"].head.sha == commit.sha
    assert len(hub.repos["me/tone"].commits) == 2
    assert len(patient) == 2


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, HubError, "wants a valid token"),
        (403, HubError, "may not do this"),
        (409, Conflict, "being changed by someone else"),
        (412, Conflict, "someone else committed"),
        (413, HubError, "too large"),
        (429, HubError, "too many requests; try again later"),
        (503, HubError, "trouble 503"),
    ],
)
def test_what_does_not_pass_is_told_and_leaves_the_repository_as_it_was(
    hub: HubServer, patient: list[float], status: int, kind: type[AdapterHubError], says: str
) -> None:
    before = hub.add_repo("me/tone").head.sha
    hub.troubles.append(Trouble("POST .*/commit/main", status, times=99))
    with pytest.raises(kind, match=says):
        push()
    assert hub.repos["me/tone"].head.sha == before


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubServer, patient: list[float]) -> None:
    hub.troubles.append(Trouble("POST answer to a commit", 0))
    commit = push()
    repo = hub.repos["me/tone"]
    assert len(repo.commits) == 2
    assert (commit.sha, commit.url) == (repo.head.sha, f"{hub.url}/me/tone/commit/{repo.head.sha}")


def test_a_rival_who_comes_while_an_answer_is_lost_is_a_conflict(hub: HubServer, patient: list[float]) -> None:
    hub.troubles.append(Trouble("POST .*/commit/main", 0))
    rivals = iter([True])

    def rival(seconds: float) -> None:
        if next(rivals, False):
            hub.repos["me/tone"].commit("rival", {"adapter_config.json": b"rival"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapterhub.hub.time.sleep", rival)
        with pytest.raises(Conflict, match="someone else committed"):
            push()
    assert hub.repos["me/tone"].head.message == "rival"


def test_an_upload_that_broke_off_goes_on_where_it_was(hub: HubServer, patient: list[float]) -> None:
    hub.troubles.append(Trouble("POST .*/commit/main", 0, times=99))
    with pytest.raises(HubError):
        push()
    hub.troubles.clear()
    hub.requests.clear()
    push()
    assert not any(each.startswith("PUT") for each in hub.requests)
    assert {name: hub.repos["me/tone"].head.tree[name] for name in FILES} == FILES


def test_a_download_is_tried_again_and_told_where_it_fails(hub: HubServer, patient: list[float]) -> None:
    hub.add_repo("me/tone", {"adapter_config.json": b"{}"})
    hub.troubles.append(Trouble("GET .*/resolve/", 503, times=1))
    assert (download_adapter("me/tone").path / "adapter_config.json").read_bytes() == b"{}"
    hub.add_repo("me/other", {"adapter_config.json": b"{}"})
    hub.troubles.append(Trouble("(GET|HEAD) /me/other/resolve/", 503, times=999))
    with pytest.raises(HubError):
        download_adapter("me/other")


def test_xet_against_a_hub_without_it_says_what_to_set(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.connect(monkeypatch, tmp_path / "home", xet=True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    with pytest.raises(HubError, match="set HF_HUB_DISABLE_XET=1"):
        push()
    assert len(hub.repos["me/tone"].commits) == 1


def test_push_to_an_existing_repository_keeps_its_other_files(hub: HubServer) -> None:
    hub.add_repo("me/tone", {"notes.txt": b"mine"})
    push()
    assert hub.repos["me/tone"].head.tree["notes.txt"] == b"mine"


def test_a_rival_commit_during_the_push_is_a_conflict_and_nothing_is_overwritten(hub: HubServer) -> None:
    hub.before_commit = lambda repo: repo.commit("rival", {"adapter_config.json": b"rival"})
    with pytest.raises(Conflict, match=r"someone else committed to 'me/tone'"):
        push()
    assert hub.repos["me/tone"].head.message == "rival"


def test_a_stale_parent_is_a_conflict(hub: HubServer) -> None:
    stale = hub.add_repo("me/tone").head.sha
    hub.repos["me/tone"].commit("later", {"a": b"1"})
    with pytest.raises(Conflict):
        push(parent=stale)


def test_private_repositories_are_made_private_and_hidden_from_strangers(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(private=True)
    assert hub.repos["me/tone"].private
    hub.connect(monkeypatch, tmp_path / "stranger", token=None)
    with pytest.raises((NotFound, HubError), match="HF_TOKEN"):
        download_adapter("me/tone")
    hub.connect(monkeypatch, tmp_path / "reader", token=READ_TOKEN)
    assert (download_adapter("me/tone").path / "adapter_config.json").read_bytes() == b"{}"


def test_private_is_never_pushed_to_a_public_repository(hub: HubServer) -> None:
    hub.add_repo("me/tone")
    with pytest.raises(HubError, match="exists and is public"):
        push(private=True)
    assert len(hub.repos["me/tone"].commits) == 1


@pytest.mark.parametrize(
    ("token", "says"), [(None, "HF_TOKEN"), ("hf_wrong", "HF_TOKEN"), (READ_TOKEN, "may not do this with 'me/tone'")]
)
def test_push_without_the_right_token_says_what_to_do(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, says: str
) -> None:
    hub.connect(monkeypatch, tmp_path / "other", token=token)
    with pytest.raises(HubError, match=says):
        push()
    assert "me/tone" not in hub.repos


def test_a_readme_the_hub_refuses_is_reported_with_its_reason(hub: HubServer) -> None:
    with pytest.raises(HubError, match=r"README\.md has no metadata"):
        push(files={**FILES, "README.md": b"# no metadata\n"})
    assert len(hub.repos["me/tone"].commits) == 1


def test_download_brings_only_what_is_asked_for(hub: HubServer) -> None:
    hub.add_repo("me/tone", {**FILES, "adapter_model.bin": b"pickle", "sub/adapter_config.json": b"{}"})
    snapshot = download_adapter("me/tone")
    assert sorted(p.name for p in snapshot.path.rglob("*")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert snapshot.commit == hub.repos["me/tone"].head.sha
    assert not any(name.endswith((".bin", ".py")) for name in ADAPTER_FILES)


def test_download_takes_an_older_revision_by_its_commit(hub: HubServer) -> None:
    repo = hub.add_repo("me/tone", {"config.json": b"old"})
    old = repo.head.sha
    repo.commit("newer", {"config.json": b"new"})
    path = download_snapshot("me/tone", old, allow_patterns=["*.json"])
    assert (path / "config.json").read_bytes() == b"old"
    assert (download_snapshot("me/tone", allow_patterns=["*.json"]) / "config.json").read_bytes() == b"new"


def test_what_the_cache_holds_is_found_without_asking(hub: HubServer) -> None:
    assert cached_snapshot("me/tone", holding="README.md") is None
    push()
    snapshot = download_adapter("me/tone")
    hub.requests.clear()
    assert cached_snapshot("me/tone", holding="adapter_config.json") == snapshot.path
    assert cached_snapshot("me/tone", snapshot.commit, holding="adapter_config.json") == snapshot.path
    assert cached_snapshot("me/tone", holding="README.md") is None
    assert cached_snapshot("me/tone", "v9", holding="adapter_config.json") is None
    assert hub.requests == []


def test_missing_repository_revision_and_gate_have_their_own_messages(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="there is no 'me/tone'"):
        download_adapter("me/tone")
    hub.add_repo("me/tone")
    with pytest.raises(NotFound, match="'me/tone' has no such revision"):
        download_adapter("me/tone", "v9")
    hub.add_repo("me/gated", gated=True)
    hub.connect(monkeypatch, tmp_path / "reader", token=READ_TOKEN)
    with pytest.raises(HubError, match="'me/gated' is gated"):
        download_adapter("me/gated")


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with HubServer() as server:
            server.connect(monkeypatch, tmp_path)
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        for action in (push, lambda: download_adapter("me/tone")):
            with pytest.raises(HubError, match=f"{url} could not be reached"):
                action()


def test_environment_is_honoured_by_a_process_of_its_own(tmp_path: Path) -> None:
    script = (
        "import sys; from adapterhub.hub import download_adapter; from adapterhub.errors import AdapterHubError\n"
        "try: print(download_adapter('me/tone').path)\n"
        "except AdapterHubError as error: sys.exit(str(error))"
    )

    def run(**extra: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **server.environment(tmp_path / "home"), **extra}
        env.pop("HF_HUB_DISABLE_XET", None)
        return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)

    with HubServer() as server:
        server.add_repo("me/tone", {"adapter_config.json": b"{}"}, private=True)
        offline = run(HF_HUB_OFFLINE="1")
        assert offline.returncode == 1
        assert "HF_HUB_OFFLINE is set" in offline.stderr
        online = run()
        assert online.stdout.startswith(str(tmp_path / "home")), online.stderr
        refused = run(HF_TOKEN="hf_wrong", HF_HOME=str(tmp_path / "other"))
        assert "HF_TOKEN" in refused.stderr
    cached = run(HF_HUB_OFFLINE="1")
    assert cached.stdout == online.stdout, cached.stderr


@pytest.mark.parametrize(
    "name", ["tone", "a/b/c", "", "/x", "me/", "me/../x", "me/a--b", "-me/x", "me/x.git", "me/" + "x" * 99]
)
def test_repository_ids_are_checked_before_anything_is_sent(name: str) -> None:
    with pytest.raises(UsageError, match="is not a Hub repository"):
        check_repo_id(name)


def test_good_repository_ids_pass() -> None:
    assert check_repo_id("My-Org_1/tone.v2") == "My-Org_1/tone.v2"


def _raised_by_http() -> list[type[BaseException]]:
    """All classes a transfer can end in: huggingface_hub's about HTTP, cache or names, and its HTTP library's."""
    ours = [
        c
        for _, c in inspect.getmembers(errors, inspect.isclass)
        if issubclass(c, (httpx2.HTTPError, OSError, ValueError))
    ]
    ours += [errors.EntryNotFoundError, errors.XetDownloadError]
    theirs = [c for _, c in inspect.getmembers(httpx2, inspect.isclass) if issubclass(c, httpx2.HTTPError)]
    return sorted({*ours, *theirs}, key=lambda c: c.__name__)


def _make(cls: type[BaseException], status: int = 418) -> BaseException:
    error = cls.__new__(cls)
    error.args = ("the reason",)
    if issubclass(cls, errors.HfHubHTTPError):
        error.response = httpx2.Response(status)  # type: ignore[attr-defined]
        error.server_message = None  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("cls", _raised_by_http(), ids=lambda c: c.__name__)
def test_table_knows_every_error_of_the_client(cls: type[BaseException]) -> None:
    ours = translate(_make(cls), "me/tone")
    assert isinstance(ours, AdapterHubError)
    assert "{" not in str(ours)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, HubError),
        (403, HubError),
        (404, NotFound),
        (409, Conflict),
        (412, Conflict),
        (413, HubError),
        (500, HubError),
    ],
)
def test_status_decides_where_the_class_is_general(status: int, kind: type[AdapterHubError]) -> None:
    ours = translate(_make(errors.HfHubHTTPError, status), "me/tone")
    assert type(ours) is kind


def test_wrappers_are_looked_into() -> None:
    wrapper = RuntimeError("Error while uploading 'x' to the Hub.")
    wrapper.__cause__ = _make(errors.HfHubHTTPError, 403)
    assert "may not do this" in str(translate(wrapper, "me/tone"))
    assert translate(RuntimeError("ours"), "me/tone") is None
    assert translate(KeyError("ours"), "me/tone") is None


def test_importing_the_door_is_light() -> None:
    code = "import sys, adapterhub.hub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
