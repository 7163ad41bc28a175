"""Names lead to bases: the catalog first, then paths, then the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.base import stamps
from adapterhub.base.catalog import CATALOG, DEFAULT_BASE, CatalogEntry
from adapterhub.base.features import default_pooling
from adapterhub.base.fingerprint import fingerprint
from adapterhub.base.source import list_bases, open_base
from adapterhub.errors import BaseError, BaseNotFound, HubError
from adapterhub.folders import cache_root
from tests.hub_server import HubServer
from tests.tiny import FAMILIES, make_tiny_base

from .wheels import tiny_entry

WEIGHTS = {"llama": 39840, "mistral": 39840, "qwen2": 40032, "gpt2": 62848, "bert": 48368}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    monkeypatch.setenv("ADAPTERHUB_WHEELS", str(tmp_path / "shelf"))
    return tiny_entry(tmp_path / "shelf")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_is_a_base_as_it_is(tmp_path: Path, root: Path, family: str) -> None:
    folder = make_tiny_base(tmp_path / family, family)
    base = open_base(str(folder), cache=root)
    assert base.path == folder
    assert base.fingerprint == fingerprint(folder)
    assert base.public_id == f"local/{family}"
    assert base.model_type == family
    assert base.parameters == WEIGHTS[family]
    assert base.bytes == 4 * WEIGHTS[family]
    assert base.context_length == 512
    assert base.is_encoder == (family == "bert")
    assert json.loads(json.dumps(base.to_record()))["path"] == str(folder)


def test_a_relative_path_and_home_are_paths(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_base(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("./org/name", "org/name", "~/org/name"):
        assert open_base(name, cache=root).path == folder


def test_what_a_config_calls_itself_is_not_believed(tmp_path: Path, root: Path) -> None:
    folder = make_tiny_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())

    def public_id(said: object) -> str:
        (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": said}))
        return open_base(str(folder), cache=root).public_id

    # A model that was trained further and saved still names its parent, whose weights it no longer has.
    for said in ("acme/their-model", "/somewhere/else", "./a/b", "one", "", None, 3):
        assert public_id(said) == "local/base"


def test_a_copy_of_a_catalog_base_is_that_base(tiny: CatalogEntry, root: Path, tmp_path: Path) -> None:
    catalog = {"tiny": tiny}
    copy = make_tiny_base(tmp_path / "copy")
    base = open_base(str(copy), catalog=catalog, cache=root)
    assert base.path == copy
    assert (base.name, base.public_id, base.derived_from, base.licence) == (
        *("tiny", "tests/tiny"),
        *("nothing", "apache-2.0"),
    )
    other = open_base(str(make_tiny_base(tmp_path / "other", seed=1)), catalog=catalog, cache=root)
    assert (other.name, other.public_id, other.derived_from) == (str(tmp_path / "other"), "local/other", None)


@pytest.mark.parametrize("fetch", [True, False])
def test_a_local_id_is_nobodys_hub_repository(hub: HubServer, root: Path, fetch: bool) -> None:
    for name in ("local/mine", "local/my model", "local/mine@main"):
        with pytest.raises(BaseNotFound, match=r"was a folder on the machine.*give its path with --base"):
            open_base(name, fetch=fetch, cache=root)
    assert hub.requests == []


def test_an_unknown_name_says_what_is_near(root: Path) -> None:
    with pytest.raises(BaseNotFound, match=r"'smollm2-135m'.*did you mean smollm2-135m-instruct"):
        open_base("smollm2-135m", cache=root)
    for name in ("", "what", "a/b/c", "tiny@3", "-x/y"):
        with pytest.raises(BaseNotFound, match="all-minilm-l6-v2"):
            open_base(name, cache=root)


def test_a_path_that_leads_nowhere(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match="no such folder"):
        open_base(str(tmp_path / "gone"), cache=root)


def test_the_catalog_comes_first_and_is_pulled(
    tiny: CatalogEntry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    catalog = {"tiny": tiny}
    with pytest.raises(BaseNotFound, match="adapterhub base pull tiny"):
        open_base("tiny", fetch=False, catalog=catalog, cache=root)
    assert [state.base for state in list_bases(catalog=catalog, cache=root)] == [None]
    pulled = open_base("tiny", catalog=catalog, cache=root)
    assert open_base("tiny", fetch=False, catalog=catalog, cache=root) == pulled
    assert [state.base for state in list_bases(catalog=catalog, cache=root)] == [pulled]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ADAPTERHUB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "adapterhub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "adapterhub"
    monkeypatch.setenv("ADAPTERHUB_CACHE", "~/mine")
    assert cache_root() == tmp_path / "mine"


def test_the_catalog_is_pinned() -> None:
    assert DEFAULT_BASE in CATALOG
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert len(bytes.fromhex(entry.fingerprint.removeprefix("sha256:"))) == 32
        assert entry.wheel.startswith(f"{entry.distribution.replace('-', '_')}-{entry.version}-")
        assert all(Path(file).name == file for file in entry.members.values())
    assert "not the public weights" in CATALOG["smollm2-135m-instruct"].derived_from


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose weights were read for a fingerprint, in order."""
    read: list[Path] = []

    def counting(folder: Path) -> str:
        read.append(folder)
        return fingerprint(folder)

    monkeypatch.setattr(stamps, "fingerprint", counting)
    return read


def test_a_fingerprint_is_computed_once(tmp_path: Path, root: Path, counted: list[Path]) -> None:
    folder = make_tiny_base(tmp_path / "base")
    first = open_base(str(folder), cache=root)
    assert open_base(str(folder), cache=root) == first
    assert counted == [folder]
    make_tiny_base(folder, seed=1)
    assert open_base(str(folder), cache=root).fingerprint != first.fingerprint
    assert len(counted) == 2


def test_a_file_changed_in_place_is_seen(tmp_path: Path, root: Path) -> None:
    folder = make_tiny_base(tmp_path / "base")
    before = open_base(str(folder), cache=root).fingerprint
    weights = folder / "model.safetensors"
    raw, state = bytearray(weights.read_bytes()), weights.stat()
    raw[-1] ^= 1
    weights.write_bytes(raw)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert open_base(str(folder), cache=root).fingerprint != before


def test_a_damaged_or_foreign_memory_is_no_harm(tmp_path: Path, root: Path, counted: list[Path]) -> None:
    folder = make_tiny_base(tmp_path / "base")
    first = open_base(str(folder), cache=root)
    for text in ("{", "[]", '{"format": 1, "folders": 3}', '{"format": 99, "folders": {}}'):
        (root / "fingerprints.json").write_text(text)
        assert open_base(str(folder), cache=root) == first
    assert len(counted) == 5


def test_folders_that_are_gone_are_forgotten(tmp_path: Path, root: Path) -> None:
    import shutil

    for name in ("one", "two"):
        open_base(str(make_tiny_base(tmp_path / name)), cache=root)
    shutil.rmtree(tmp_path / "one")
    open_base(str(make_tiny_base(tmp_path / "three")), cache=root)
    known = json.loads((root / "fingerprints.json").read_text())["folders"]
    assert sorted(Path(path).name for path in known) == ["three", "two"]


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path / "base")
    (tmp_path / "file").write_text("in the way")
    assert open_base(str(folder), cache=tmp_path / "file").fingerprint == fingerprint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, root: Path, change: dict[str, object], message: str) -> None:
    folder = make_tiny_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BaseError, match=message):
        open_base(str(folder), cache=root)


def test_roberta_counts_positions_from_its_padding(tmp_path: Path, root: Path) -> None:
    folder = make_tiny_base(tmp_path / "base", "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta", "pad_token_id": 1}))
    assert open_base(str(folder), cache=root).context_length == 510


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# It", "mit"),
        ('---\nlanguage: en\nlicense: "apache-2.0"\n---', "apache-2.0"),
        ("# It\nlicense: mit\n", None),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
    ],
)
def test_the_licence_is_what_the_model_card_says(tmp_path: Path, root: Path, card: str, licence: str | None) -> None:
    folder = make_tiny_base(tmp_path / "base")
    (folder / "README.md").write_text(card)
    assert open_base(str(folder), cache=root).licence == licence


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "hub-home")
        yield server


def served_files(folder: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {
        **files,
        "pytorch_model.bin": b"pickle",
        "onnx/model.safetensors": b"other",
        "README.md": b"---\nlicense: mit\n---",
    }


def test_a_hub_id_is_fetched_without_its_pickles(hub: HubServer, tmp_path: Path, root: Path) -> None:
    folder = make_tiny_base(tmp_path / "base")
    repo = hub.add_repo("acme/base", served_files(folder))
    with pytest.raises(BaseNotFound, match="adapterhub base pull acme/base"):
        open_base("acme/base", fetch=False, cache=root)
    base = open_base("acme/base", cache=root)
    assert base.fingerprint == fingerprint(folder)
    assert (base.public_id, base.licence) == ("acme/base", "mit")
    assert {file.name for file in base.path.iterdir()} == {file.name for file in folder.iterdir()} | {"README.md"}
    assert open_base("acme/base", fetch=False, cache=root) == base
    assert base.revision == base.to_record()["revision"] == base.to_card()["revision"] == repo.head.sha
    pinned = open_base(f"acme/base@{repo.head.sha}", cache=root)
    assert (pinned.public_id, pinned.path) == ("acme/base", base.path)


def test_how_a_sentence_encoder_pools_comes_with_it(hub: HubServer, tmp_path: Path, root: Path) -> None:
    files = served_files(make_tiny_base(tmp_path / "base", "bert"))
    hub.add_repo("acme/encoder", {**files, "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}'})
    assert default_pooling(open_base("acme/encoder", cache=root)) == "cls"
    assert default_pooling(open_base("acme/encoder", fetch=False, cache=root)) == "cls"


def test_a_hub_id_that_does_not_exist(hub: HubServer, root: Path) -> None:
    with pytest.raises(BaseNotFound, match="acme/none"):
        open_base("acme/none", cache=root)


def test_a_hub_id_with_pickles_only_is_refused(hub: HubServer, tmp_path: Path, root: Path) -> None:
    files = served_files(make_tiny_base(tmp_path / "base"))
    del files["model.safetensors"]
    hub.add_repo("acme/old", files)
    with pytest.raises(BaseError, match=r"model\.safetensors"):
        open_base("acme/old", cache=root)


def test_offline_a_hub_base_comes_from_the_hubs_cache(
    hub: HubServer, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.add_repo("acme/base", served_files(make_tiny_base(tmp_path / "base")))
    online = open_base("acme/base", cache=root)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_base("acme/base", cache=root) == online
    with pytest.raises((HubError, BaseNotFound), match="acme/other"):
        open_base("acme/other", cache=root)
