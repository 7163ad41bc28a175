"""Push and pull against the local Hub: what arrives is what left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapterhub.data.task import Calibration
from adapterhub.errors import BaseNotFound, Conflict, CorruptAdapter, FileMissing, NotFound, RefNotFound, UsageError
from adapterhub.pipeline.adopt import Request, adopt
from adapterhub.pipeline.share import pull, push
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published
from tests.hub_server import HubServer
from tests.pipeline.strangers import CONFIG, WEIGHTS, change_config, make_stranger, peft_logits
from tests.tiny import make_tiny_base

# The client's own uploads use a spelling that its HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
FILES = [CONFIG, WEIGHTS, "task.json", "card.json", "README.md"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def here(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "there")


@pytest.fixture
def version(hub: HubServer, here: Registry, base: Path, tmp_path: Path) -> Published:
    folder = make_stranger(base, tmp_path / "theirs", labels=3)
    return adopt(folder, here, Request("tone", base=str(base), labels=["glad", "sad", "other"]))


def test_push_is_one_commit_of_the_whole_version(hub: HubServer, here: Registry, version: Published) -> None:
    pushed = push("tone@1", "me/tone", here, private=True)
    repo = hub.repos["me/tone"]
    assert len(repo.commits) == 2
    assert repo.private
    assert (repo.head.sha, repo.head.message) == (pushed.commit.sha, f"Publish tone@1 ({version.digest[:19]})")
    assert sorted(set(repo.head.tree) - {".gitattributes"}) == sorted(FILES)
    for name in FILES[:-1]:  # nothing is attached to it, so the card stays as it is
        assert repo.head.tree[name] == (version.path / name).read_bytes()
    readme = repo.head.tree["README.md"].decode()
    assert "library_name: peft" in readme
    assert "adapterhub pull me/tone --as tone" in readme
    assert "ORG/NAME" not in readme


def test_pull_ends_with_the_digest_that_was_pushed(
    hub: HubServer, here: Registry, there: Registry, version: Published
) -> None:
    commit = push("tone", "me/tone", here).commit.sha
    pulled = pull("me/tone", there, Request("mood"))
    assert (pulled.task, pulled.version, pulled.digest, pulled.created) == ("mood", 1, version.digest, True)
    assert pulled.spec() == version.spec()
    assert pulled.card().extra["source"] == {"hub": "me/tone", "commit": commit}
    assert there.verify() == []
    assert not pull("me/tone", there, Request("mood")).created


def test_a_version_becomes_a_tag_and_can_be_pulled_by_it(
    hub: HubServer, here: Registry, there: Registry, base: Path, tmp_path: Path, version: Published
) -> None:
    first = push("tone@1", "me/tone", here)
    newer = adopt(make_stranger(base, tmp_path / "two", labels=3, seed=1), here, Request("tone", base=str(base)))
    push("tone@2", "me/tone", here, tag="best")
    assert hub.repos["me/tone"].tags == {"v1": first.commit.sha, "best": hub.repos["me/tone"].head.sha}
    assert pull("me/tone", there, Request("mood"), revision="v1").digest == version.digest
    assert pull("me/tone", there, Request("mood"), revision="best").digest == newer.digest


def test_pushing_again_changes_nothing(hub: HubServer, here: Registry, version: Published) -> None:
    first = push("tone", "me/tone", here)
    again = push("tone", "me/tone", here)
    assert (first.commit.changed, again.commit.changed) == (True, False)
    assert again.commit.sha == first.commit.sha
    assert len(hub.repos["me/tone"].commits) == 2


def test_an_older_version_may_be_pushed_again_and_its_tag_stays(
    hub: HubServer, here: Registry, base: Path, tmp_path: Path, version: Published
) -> None:
    first = push("tone@1", "me/tone", here)
    adopt(make_stranger(base, tmp_path / "two", labels=3, seed=1), here, Request("tone", base=str(base)))
    push("tone@2", "me/tone", here)
    back = push("tone@1", "me/tone", here)
    assert back.commit.changed
    assert hub.repos["me/tone"].tags["v1"] == first.commit.sha


def test_a_tag_of_another_version_is_refused_before_anything_is_committed(
    hub: HubServer, here: Registry, base: Path, tmp_path: Path, version: Published
) -> None:
    push("tone@1", "me/tone", here, tag="stable")
    adopt(make_stranger(base, tmp_path / "two", labels=3, seed=1), here, Request("tone", base=str(base)))
    with pytest.raises(Conflict, match="tags do not move; give another"):
        push("tone@2", "me/tone", here, tag="stable")
    assert len(hub.repos["me/tone"].commits) == 2


@pytest.mark.parametrize("tag", ["", "-v", "a b", "a..b", "x.lock", "v1.", "a/b", "x" * 101])
def test_a_tag_must_be_a_name(hub: HubServer, here: Registry, version: Published, tag: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag"):
        push("tone", "me/tone", here, tag=tag)
    assert hub.requests == []


def test_what_somebody_else_pushed_is_not_overwritten(
    hub: HubServer, here: Registry, there: Registry, base: Path, tmp_path: Path, version: Published
) -> None:
    push("tone", "me/tone", here)
    adopt(make_stranger(base, tmp_path / "two", labels=3, seed=1), there, Request("tone", base=str(base)))
    with pytest.raises(Conflict, match="somebody else pushed it"):
        push("tone", "me/tone", there)
    assert len(hub.repos["me/tone"].commits) == 2
    pull("me/tone", there, Request("tone"))
    assert push("tone@1", "me/tone", there, tag="mine").commit.changed


def test_a_model_that_was_not_pushed_from_a_registry_is_not_overwritten(
    hub: HubServer, here: Registry, version: Published
) -> None:
    hub.add_repo("me/theirs", {"config.json": b"{}", "model.safetensors": b"weights"})
    with pytest.raises(Conflict, match="holds a model that was not pushed from a registry"):
        push("tone", "me/theirs", here)
    assert len(hub.repos["me/theirs"].commits) == 2


@pytest.mark.parametrize("name", ["/etc", "../x", "~/x", "a/b/c", "x" * 5000, "local/..", ""])
def test_a_strangers_card_names_no_path(
    hub: HubServer, here: Registry, there: Registry, version: Published, name: str
) -> None:
    push("tone", "me/tone", here)
    repo = hub.repos["me/tone"]
    card = json.loads(repo.head.tree["card.json"])
    card["base"] |= {"name": name, "public_id": name}
    repo.commit("tamper", {"card.json": json.dumps(card).encode()})
    with pytest.raises(CorruptAdapter):
        pull("me/tone", there, Request("mood"))


def test_without_a_repository_it_is_the_tasks_name_in_the_own_account(
    hub: HubServer, here: Registry, version: Published
) -> None:
    assert push("tone", None, here).commit.repo_id == "me/tone"


def test_probes_go_to_the_hub_only_when_asked(
    hub: HubServer, here: Registry, there: Registry, version: Published
) -> None:
    attached = {
        "probes.jsonl": '{"answer": {"label": "glad", "probs": {}}, "fields": {"text": "a"}}\n',
        "rows.txt": "train a b\n",
    }
    kept = here.publish("kept", version.path, version.card(), attached)
    push("kept", "me/kept", here)
    assert sorted(set(hub.repos["me/kept"].head.tree) - {".gitattributes"}) == sorted(FILES)
    pulled = pull("me/kept", there, Request("plain"))
    assert (pulled.digest, pulled.card().files) == (kept.digest, {})
    push("kept", "me/kept", here, probes=True, tag="probed")
    pulled = pull("me/kept", there, Request("probed"))
    push("kept", "me/kept", here)
    assert "probes.jsonl" not in hub.repos["me/kept"].head.tree
    assert pulled.attached("probes.jsonl") == attached["probes.jsonl"]
    assert pulled.attached("rows.txt") is None
    assert there.verify() == here.verify() == []


def test_a_calibration_goes_to_the_hub_and_back(
    hub: HubServer, here: Registry, there: Registry, version: Published, tmp_path: Path
) -> None:
    folder = shutil.copytree(version.path, tmp_path / "calibrated")
    spec = replace(version.spec(), calibration=Calibration(1.7, 0.4))
    (folder / "task.json").write_text(spec.to_json())
    card = replace(version.card(), calibration={"temperature": 1.7, "temperature_reason": "set by the recipe"})
    published = here.publish("unsure", folder, card)
    push("unsure", "me/unsure", here)
    pulled = pull("me/unsure", there, Request("mood"))
    assert pulled.digest == published.digest
    assert pulled.spec() == spec
    assert pulled.card().calibration == card.calibration
    assert "## Calibration" in (pulled.path / "README.md").read_text()
    assert there.verify() == here.verify() == []


def test_pull_takes_a_revision(
    hub: HubServer, here: Registry, there: Registry, base: Path, tmp_path: Path, version: Published
) -> None:
    first = push("tone@1", "me/tone", here).commit.sha
    newer = adopt(make_stranger(base, tmp_path / "two", labels=3, seed=1), here, Request("tone", base=str(base)))
    push("tone@2", "me/tone", here)
    assert pull("me/tone", there, Request("mood")).digest == newer.digest
    assert pull("me/tone", there, Request("mood"), revision=first).digest == version.digest
    with pytest.raises(NotFound, match="no such revision"):
        pull("me/tone", there, Request("mood"), revision="v9")


def test_what_does_not_verify_is_not_pushed(hub: HubServer, here: Registry, version: Published) -> None:
    (version.path / CONFIG).write_text("{}")
    with pytest.raises(CorruptAdapter, match="tone@1 does not verify"):
        push("tone", "me/tone", here)
    assert hub.requests == []


def test_wrong_names_are_told_before_anything_is_sent(hub: HubServer, here: Registry, version: Published) -> None:
    with pytest.raises(UsageError, match="write ORG/NAME"):
        push("tone", "tone", here)
    with pytest.raises(RefNotFound):
        push("tune", "me/tone", here)
    with pytest.raises(UsageError, match="cannot be a task"):
        pull("me/tone", here, Request("../x"))
    assert hub.requests == []


def test_a_tampered_repository_is_refused(hub: HubServer, here: Registry, there: Registry, version: Published) -> None:
    push("tone", "me/tone", here)
    repo = hub.repos["me/tone"]
    weights = bytearray(repo.head.tree[WEIGHTS])
    weights[-1] ^= 1
    repo.commit("tamper", {WEIGHTS: bytes(weights)})
    with pytest.raises(CorruptAdapter, match="but its card says"):
        pull("me/tone", there, Request("mood"))
    assert not there.root.exists()


def test_a_strangers_plain_adapter_is_imported(hub: HubServer, there: Registry, base: Path, tmp_path: Path) -> None:
    folder = make_stranger(base, tmp_path / "theirs", labels=2, target_modules="all-linear")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = hub.add_repo("them/tone", {**files, "evil.bin": b"pickle"}).head.sha
    with pytest.raises(BaseNotFound, match="say which with --base"):
        pull("them/tone", there, Request("mood"))
    pulled = pull("them/tone", there, Request("mood", base=str(base), labels=["a", "b"], paths=True))
    assert pulled.spec().labels == ("a", "b")
    assert pulled.card().extra["source"] == {"hub": "them/tone", "commit": commit}
    assert torch.equal(peft_logits(base, folder, 2), peft_logits(base, pulled.path, 2))
    assert not any("evil" in request for request in hub.requests)


def test_a_base_named_by_hub_id_is_fetched_from_the_hub(
    hub: HubServer, there: Registry, base: Path, tmp_path: Path
) -> None:
    hub.add_repo("them/base", {path.name: path.read_bytes() for path in base.iterdir()})
    folder = make_stranger(base, tmp_path / "theirs")
    change_config(folder, base_model_name_or_path="them/base")
    hub.add_repo("them/tone", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    pulled = pull("them/tone", there, Request("mood"))
    assert pulled.base == "them/base"
    change_config(folder, revision="v7")
    with pytest.raises(BaseNotFound, match="no such revision"):
        adopt(folder, there, Request("mood"))
    assert json.loads((pulled.path / CONFIG).read_text())["base_model_name_or_path"] == "them/base"


def test_a_repository_of_pickles_is_refused_unfetched(hub: HubServer, there: Registry) -> None:
    hub.add_repo("them/old", {CONFIG: b"{}", "adapter_model.bin": b"pickle"})
    with pytest.raises(FileMissing, match="pickle files are never fetched"):
        pull("them/old", there, Request("mood"))
    assert not any("adapter_model.bin" in request for request in hub.requests)


def test_plain_peft_of_another_process_loads_the_pushed_repository(
    hub: HubServer, here: Registry, base: Path, version: Published, tmp_path: Path
) -> None:
    push("tone", "me/tone", here)
    script = f"""
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
plain = AutoModelForSequenceClassification.from_pretrained({str(base)!r}, num_labels=3, attn_implementation="sdpa")
model = PeftModel.from_pretrained(plain, "me/tone").eval()
ids = torch.arange(3, 23)[None, :]
with torch.no_grad():
    torch.save(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, {str(tmp_path / "logits")!r})
"""
    env = {**os.environ, **hub.environment(tmp_path / "stranger"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True)
    logits = torch.load(tmp_path / "logits", weights_only=True)
    assert torch.equal(logits, peft_logits(base, version.path, 3))
