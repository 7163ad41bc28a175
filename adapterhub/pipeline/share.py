"""Versions to the Hub and back: push is one commit, pull ends in the registry."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.base.source import Progress
from adapterhub.errors import AdapterHubError, Conflict, CorruptAdapter, FileMissing, UsageError
from adapterhub.hub import (
    ADAPTER_FILES,
    Commit,
    check_repo_id,
    download_adapter,
    download_snapshot,
    open_repo,
    own_name,
    push_folder,
    put_tag,
    tagged,
)
from adapterhub.registry.bundle import CARD_FILE, DIGEST_FILES, PROBES_FILE, README_FILE, read_text
from adapterhub.registry.card import Card
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published, Version

from .adopt import Request, adopt, check_new_task

# Where a model card leaves room for the repository it will lie in.
_PLACE = "ORG/NAME"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Pushed:
    """A version, the commit that holds it now, and the tag that names it."""

    version: Version
    commit: Commit
    tag: str

    def to_record(self) -> dict[str, Any]:
        """Return what scripts read."""
        version = self.version
        return {
            "task": version.task,
            "ref": version.ref,
            "version": version.version,
            "digest": version.digest,
            "repo": self.commit.repo_id,
            "commit": self.commit.sha,
            "url": self.commit.url,
            "changed": self.commit.changed,
            "tag": self.tag,
        }


def push(
    ref: str,
    repo_id: str | None,
    registry: Registry,
    *,
    private: bool = False,
    tag: str | None = None,
    probes: bool = False,
) -> Pushed:
    """Put a version on the Hub as one commit: the adapter, its rules, its card and a model card.

    The commit gets a tag, "v3" for version 3 unless `tag` names another. `repo_id` None takes the task's name in the
    account of the token. The version's probes, which are rows of its data, go along only with `probes`. What is there
    already makes no commit. A tag that names an earlier commit of the same version stays where it is.

    The files are hashed again first: what does not verify is not pushed. Raises CorruptAdapter, RefNotFound,
    UsageError, HubError (also for a public repository where a private one was asked for), and Conflict where somebody
    else committed meanwhile, where the repository holds something else than a version of this task, or where the tag
    names another version.
    """
    if repo_id is not None:
        check_repo_id(repo_id)
    version = registry.resolve(ref)
    tag = check_tag(tag) if tag is not None else f"v{version.version}"
    problems = [problem for problem in registry.verify(version.ref) if not problem.note]
    if problems:
        raise CorruptAdapter(f"{version.ref} does not verify, so it was not pushed: {problems[0].message}")
    repo_id = f"{own_name()}/{version.task}" if repo_id is None else repo_id
    files = _files(version, repo_id, probes=probes)
    parent = open_repo(repo_id, private=private)
    _check_known(repo_id, parent, version.task, registry)
    named = tagged(repo_id, tag)
    if named is not None and (there := _digest_at(repo_id, named)) != version.digest:
        raise Conflict(
            f"tag {tag!r} of {repo_id!r} names {there or 'something that is no version'}, not {version.digest}, and "
            "tags do not move; give another with --tag"
        )
    # What an earlier push took along and this one does not: its card no longer names it, and it may be private.
    stale = [PROBES_FILE] if PROBES_FILE not in files else []
    message = f"Publish {version.ref} ({version.digest[:19]})"
    commit = push_folder(repo_id, files, message=message, parent=parent, remove=stale)
    if named is None:
        put_tag(repo_id, tag, commit.sha)
    return Pushed(version, commit, tag)


def check_tag(name: str) -> str:
    """Return `name` if a tag on the Hub may be called so; raises UsageError."""
    if not _TAG.fullmatch(name) or name.endswith((".", ".lock")) or ".." in name:
        raise UsageError(
            f"{name!r} cannot be a tag: use letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return name


def _files(version: Version, repo_id: str, *, probes: bool) -> dict[str, Path | bytes]:
    """Return what of a version goes to the Hub; which rows made it stays here, and so do probes unless asked for."""
    card = version.card()
    files: dict[str, Path | bytes] = {name: version.path / name for name in DIGEST_FILES}
    kept = {name: digest for name, digest in card.files.items() if probes and name == PROBES_FILE}
    files |= {name: version.path / name for name in kept}
    files[CARD_FILE] = replace(card, files=kept).to_json().encode()
    files[README_FILE] = read_text(version.path / README_FILE).replace(_PLACE, repo_id).encode()
    return files


def _check_known(repo_id: str, commit: str, task: str, registry: Registry) -> None:
    """Raise Conflict where the repository holds a version that is not one of the task's: somebody else pushed it."""
    digest = _digest_at(repo_id, commit)
    if digest is None:
        model = download_snapshot(repo_id, commit, allow_patterns=["adapter_config.json", "config.json"])
        if any((model / name).is_file() for name in ("adapter_config.json", "config.json")):
            raise Conflict(f"{repo_id!r} holds a model that was not pushed from a registry; push to another repository")
    if digest is not None and not registry.has(task, digest):
        raise Conflict(
            f"{repo_id!r} holds {digest[:23]}, which is no version of {task!r} here: somebody else pushed it. "
            f"`adapterhub pull {repo_id} --as {task}` makes it one; else push to another repository"
        )


def _digest_at(repo_id: str, commit: str) -> str | None:
    """Return the digest that the card in a repository has at a commit, None where no card is there."""
    path = download_snapshot(repo_id, commit, allow_patterns=[CARD_FILE]) / CARD_FILE
    if not path.is_file():
        return None
    try:
        return Card.from_json(path.read_text(encoding="utf-8")).digest
    except (AdapterHubError, ValueError):
        return "a card that cannot be read"


def pull(
    repo_id: str,
    registry: Registry,
    request: Request,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Published:
    """Fetch an adapter repository and publish it as `request.task`; only the files an adapter is made of are fetched.

    What `push` put there keeps its digest; any other PEFT adapter goes the way of `adopt`. Raises as `adopt` does, and
    HubError or NotFound.
    """
    check_repo_id(repo_id)
    check_new_task(request.task)
    if progress:
        progress(f"Fetching {repo_id} from the Hub")
    snapshot = download_adapter(repo_id, revision)
    source = {"hub": repo_id, "commit": snapshot.commit}
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as scratch:
        folder = Path(scratch)
        # Copied, because the Hub cache holds links, which an adapter folder must not.
        _copy(snapshot.path, folder, ADAPTER_FILES)
        if not (folder / "adapter_model.safetensors").is_file():
            raise FileMissing(
                f"{repo_id!r} at {snapshot.commit[:8]} has no adapter_model.safetensors, and pickle files are never "
                "fetched; ask its maker to save the adapter with safe_serialization=True"
            )
        return adopt(folder, registry, replace(request, source=source, paths=False), progress)


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
