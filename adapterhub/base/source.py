"""`open_base`: from a name (catalog, Hub id or path) to a base on disk."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import BaseError, BaseNotFound, NotFound
from adapterhub.folders import cache_root

from .catalog import CATALOG, CatalogEntry
from .describe import describe
from .pull import installed, pull
from .record import Base, Progress
from .stamps import remembered_fingerprint
from .tensors import weight_files

__all__ = ["Base", "CatalogState", "Progress", "list_bases", "open_base"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_LOCAL = "local/"
# Named one by one: patterns match inside subfolders too (onnx/model.safetensors), and a pickle must never come along.
_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "1_Pooling/config.json",  # how a sentence encoder pools
    "README.md",
)


@dataclass(frozen=True)
class CatalogState:
    """An entry of the catalog, and its base where it has been pulled."""

    entry: CatalogEntry
    base: Base | None


def open_base(
    name: str,
    *,
    fetch: bool = True,
    progress: Progress | None = None,
    catalog: Mapping[str, CatalogEntry] = CATALOG,
    cache: Path | None = None,
) -> Base:
    """Return the base called `name`: a catalog name, else a path, else a Hub id (`org/name` or `org/name@revision`).

    What is not on this machine is fetched, unless `fetch` is False. `cache` defaults to the user's cache folder. Raises
    BaseNotFound where there is none, BaseError where it cannot be used, HubError where the Hub cannot be reached.
    """
    root = cache or cache_root()
    if name in catalog:
        entry = catalog[name]
        base = pull(entry, root, progress) if fetch else installed(entry, root)
        if base is None:
            raise BaseNotFound(f"base {name!r} is not on this machine; run `adapterhub base pull {name}`")
        return base
    if name.startswith(("/", ".", "~")) or (name and Path(name).is_dir()):
        return _open_path(name, root, progress, catalog)
    if is_local(name):
        raise BaseNotFound(
            f"base {name!r} was a folder on the machine of whoever used it, and has no public home; "
            "if you have that folder, give its path with --base"
        )
    repo_id, _, revision = name.partition("@")
    if _HUB_ID.match(repo_id):
        return _open_hub(name, repo_id, revision or None, root, fetch=fetch, progress=progress)
    close = difflib.get_close_matches(name, catalog, n=3, cutoff=0.4)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise BaseNotFound(
        f"no base {name!r}: {meant}Name one of the catalog ({', '.join(catalog)}), "
        "a Hugging Face id (org/name), or the path of a folder (./name)"
    )


def list_bases(*, catalog: Mapping[str, CatalogEntry] = CATALOG, cache: Path | None = None) -> list[CatalogState]:
    """Return every entry of the catalog with its base, or None where it has not been pulled."""
    root = cache or cache_root()
    return [CatalogState(entry, installed(entry, root)) for entry in catalog.values()]


def is_local(public_id: str) -> bool:
    """Say whether a public id stands for a folder on somebody's machine, which nobody else can fetch."""
    return public_id.startswith(_LOCAL)


def _open_path(name: str, root: Path, progress: Progress | None, catalog: Mapping[str, CatalogEntry]) -> Base:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise BaseNotFound(f"no base at {name!r}: there is no such folder; name one written by save_pretrained")
    folder = folder.resolve()
    found = remembered_fingerprint(folder, root, progress)
    for entry in catalog.values():
        if entry.fingerprint == found:
            # A copy of a catalog base: under that name everybody else has it too.
            return describe(
                folder,
                name=entry.name,
                public_id=entry.public_id,
                fingerprint=found,
                licence=entry.licence,
                derived=entry.derived_from,
            )
    # Never what `_name_or_path` of the config says: a model trained further and saved still names its parent there.
    return describe(folder, name=name, public_id=_LOCAL + folder.name, fingerprint=found)


def _open_hub(
    name: str, repo_id: str, revision: str | None, root: Path, *, fetch: bool, progress: Progress | None
) -> Base:
    folder = _download(name, repo_id, revision, progress) if fetch else _in_hub_cache(repo_id, revision)
    if folder is None:
        raise BaseNotFound(f"base {name!r} is not on this machine; run `adapterhub base pull {name}`")
    found = remembered_fingerprint(folder, root, progress)
    # The Hub's cache calls the folder by its commit.
    return describe(folder, name=name, public_id=repo_id, fingerprint=found, revision=folder.name)


def _download(name: str, repo_id: str, revision: str | None, progress: Progress | None) -> Path:
    from adapterhub.hub import download_snapshot

    if progress:
        progress(f"Fetching {name} from the Hub")
    try:
        return download_snapshot(repo_id, revision, allow_patterns=_HUB_FILES)
    except NotFound as error:
        raise BaseNotFound(f"no base {name!r}: {error}") from error


def _in_hub_cache(repo_id: str, revision: str | None) -> Path | None:
    """Return the snapshot that the Hub's cache on this machine holds with its weights, asking nobody."""
    from adapterhub.hub import cached_snapshot

    folder = cached_snapshot(repo_id, revision, holding="config.json")
    if folder is None:
        return None
    try:
        weight_files(folder)
    except BaseError:
        return None
    return folder
