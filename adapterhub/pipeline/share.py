"""Versions to the Hub and back: push is one commit, pull ends in the registry."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.base.source import Progress
from adapterhub.errors import CorruptAdapter, FileMissing
from adapterhub.hub import ADAPTER_FILES, Commit, check_repo_id, download_adapter, push_folder
from adapterhub.registry.bundle import ALL_FILES, README_FILE, read_text
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published, Version

from .adopt import Request, adopt, check_new_task

# Where a model card leaves room for the repository it will lie in.
_PLACE = "ORG/NAME"


@dataclass(frozen=True)
class Pushed:
    """A version, and the commit that holds it now."""

    version: Version
    commit: Commit

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
        }


def push(ref: str, repo_id: str, registry: Registry, *, private: bool = False) -> Pushed:
    """Put a version on the Hub as one commit: the adapter, its rules, its card and a model card.

    The files are hashed again first: what does not verify is not pushed. Raises CorruptAdapter, RefNotFound,
    UsageError, HubError (also for a public repository where a private one was asked for), and Conflict where somebody
    else committed meanwhile.
    """
    check_repo_id(repo_id)
    version = registry.resolve(ref)
    problems = [problem for problem in registry.verify(version.ref) if not problem.note]
    if problems:
        raise CorruptAdapter(f"{version.ref} does not verify, so it was not pushed: {problems[0].message}")
    files: dict[str, Path | bytes] = {name: version.path / name for name in ALL_FILES}
    files[README_FILE] = read_text(version.path / README_FILE).replace(_PLACE, repo_id).encode()
    message = f"Publish {version.ref} ({version.digest[:19]})"
    return Pushed(version, push_folder(repo_id, files, private=private, message=message))


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
