"""The only door to the Hugging Face Hub: files out, files in, and one table for what can go wrong.

`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub, which reads most of
them when it is first imported; that is why it is imported inside functions here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from .errors import AdapterHubError, Conflict, HubError, NotFound, UsageError

T = TypeVar("T")

# All that is ever fetched from an adapter repository; pickle files stay where they are.
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "task.json",
    "card.json",
    "probes.jsonl",
    "config.json",
)


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository at one commit, in the Hub cache (where files are links: copy before checking them)."""

    repo_id: str
    commit: str
    path: Path


@dataclass(frozen=True)
class Commit:
    """One commit on a repository's main branch; `changed` says whether the push made it, or found all there already."""

    repo_id: str
    sha: str
    url: str
    changed: bool = True


def download_snapshot(repo_id: str, revision: str | None = None, *, allow_patterns: Sequence[str]) -> Path:
    """Fetch the files of a model repository that match `allow_patterns`; return the folder in the Hub cache.

    Offline, or when the Hub is out of reach, what the cache holds is used. The folder's name is the commit.
    Raises HubError, NotFound or UsageError.
    """
    hub = _client()
    with _translated(repo_id):
        found = _patiently(
            lambda: hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(allow_patterns))
        )
        return Path(found)


def cached_snapshot(repo_id: str, revision: str | None = None, *, holding: str) -> Path | None:
    """Return the folder of the Hub cache with that revision of a repository, where it holds the file `holding`.

    Nobody is asked, and nothing is fetched. None where there is no such folder, or it came without that file.
    """
    found = _client().try_to_load_from_cache(repo_id, holding, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def download_adapter(repo_id: str, revision: str | None = None) -> Snapshot:
    """Fetch only the files an adapter is made of, `ADAPTER_FILES`; which of them exist is for the caller to see."""
    path = download_snapshot(repo_id, revision, allow_patterns=ADAPTER_FILES)
    return Snapshot(repo_id=repo_id, commit=path.name, path=path)


def open_repo(repo_id: str, *, private: bool) -> str:
    """Create a model repository if it is missing, and return the commit that its main branch stands at.

    With `private`, a repository that is already public is refused.
    """
    check_repo_id(repo_id)
    api = _client().HfApi(library_name="adapterhub")
    with _translated(repo_id):
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        info = api.model_info(repo_id)
        if private and not info.private:
            raise HubError(f"{repo_id!r} exists and is public; choose another name, or push without --private")
        return str(info.sha)


def push_folder(
    repo_id: str, files: Mapping[str, Path | bytes], *, message: str, parent: str, remove: Sequence[str] = ()
) -> Commit:
    """Write `files` (path in the repository → file or content) as one commit on top of the commit `parent`.

    Files named in `remove` go, where they are there. Refused with Conflict when the branch no longer stands at
    `parent`. Unchanged files make no commit; `parent` is returned.
    What was uploaded before a push broke off is not uploaded again.
    """
    hub = _client()
    api = hub.HfApi(library_name="adapterhub")

    def commit() -> Commit:
        operations = [hub.CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        operations += [hub.CommitOperationDelete(name) for name in there]
        try:
            done = api.create_commit(repo_id, operations, commit_message=message, parent_commit=parent)
        except hub.errors.HfHubHTTPError as error:
            # The answer to an earlier try may have been lost on the way: then the commit on top of `parent` is ours.
            if getattr(error.response, "status_code", None) != _STALE:
                raise
            if (sha := made()) is None:
                raise
            return Commit(repo_id, sha, f"{_endpoint()}/{repo_id}/commit/{sha}")
        # Where nothing changed the client answers with what the branch stands at now, whoever made that.
        if done.oid != parent and made() != done.oid:
            raise Conflict(_STATUS_RULES[_STALE][1].format(repo=repr(repo_id)))
        return Commit(repo_id, done.oid, done.commit_url, changed=done.oid != parent)

    def made() -> str | None:
        """Return the last commit, if it is this push's."""
        last = api.list_repo_commits(repo_id)[:2]
        ours = [last[0].title, *(each.commit_id for each in last[1:])] == [message, parent]
        return str(last[0].commit_id) if ours else None

    with _translated(repo_id):
        there = [name for name in remove if api.file_exists(repo_id, name, revision=parent)]
        return _patiently(commit)


def tagged(repo_id: str, tag: str) -> str | None:
    """Return the commit that a tag of a repository names, None where there is no such tag."""
    api = _client().HfApi(library_name="adapterhub")
    with _translated(repo_id):
        found = {each.name: str(each.target_commit) for each in api.list_repo_refs(repo_id).tags}
    return found.get(tag)


def put_tag(repo_id: str, tag: str, sha: str) -> None:
    """Have a new tag name the commit `sha`; raises Conflict where somebody else just made one of that name."""
    with _translated(repo_id):
        _client().HfApi(library_name="adapterhub").create_tag(repo_id, tag=tag, revision=sha)


def own_name() -> str:
    """Return the name of the account whose token is used."""
    with _translated("your account"):
        return str(_client().HfApi(library_name="adapterhub").whoami()["name"])


def check_repo_id(repo_id: str) -> str:
    """Return `repo_id` if it is ORG/NAME as the Hub allows; raises UsageError."""
    if repo_id.count("/") != 1:
        raise UsageError(f"{repo_id!r} is not a Hub repository: write ORG/NAME")
    _client()
    from huggingface_hub.utils._validators import validate_repo_id

    with _translated(repo_id):
        validate_repo_id(repo_id)
    return repo_id


def _patiently(work: Callable[[], T]) -> T:
    """Return what `work` returns; where a server is busy or a line breaks, try again, three times in all."""
    for seconds in _WAITS:
        try:
            return work()
        except Exception as error:
            if not _passes(error):
                raise
            time.sleep(seconds)
    return work()


def _passes(error: BaseException | None) -> bool:
    """Say whether the same request may well succeed in a moment."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        names = {cls.__name__ for cls in type(error).__mro__}
        if status in _PASSING or names & _BROKEN_LINES:
            return True
        error = error.__cause__
    return False


def _client() -> ModuleType:
    # Plain LFS uploads go through proxies and mirrors of the Hub; Xet talks to further hosts of its own.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import huggingface_hub

    return huggingface_hub


_STALE = 412
_PASSING = frozenset({429, 500, 502, 503, 504})
_BROKEN_LINES = frozenset({"ReadError", "WriteError", "RemoteProtocolError", "ReadTimeout"})
_WAITS = (1.0, 4.0)  # seconds
# Foreign errors, by class name, so that the table needs neither huggingface_hub nor its HTTP library loaded (which
# differs by version). The first name found along an error's classes decides.
_LOGIN = "set HF_TOKEN or run `hf auth login`"
_RULES: Mapping[str, tuple[type[AdapterHubError], str]] = {
    "GatedRepoError": (HubError, f"{{repo}} is gated: ask for access on its page, then {_LOGIN}"),
    "DisabledRepoError": (HubError, "{repo} was disabled by its owner or by the Hub"),
    "RepositoryNotFoundError": (NotFound, f"there is no {{repo}} on {{endpoint}}; if it is private, {_LOGIN}"),
    "RevisionNotFoundError": (NotFound, "{repo} has no such revision; name a branch, a tag or a commit of it"),
    "EntryNotFoundError": (NotFound, "a file is missing from {repo}: {detail}"),
    "LocalEntryNotFoundError": (HubError, "{repo} is not in the local cache and the Hub could not be asked: {detail}"),
    "BadRequestError": (HubError, "the Hub refused the request for {repo}: {detail}"),
    "OfflineModeIsEnabled": (HubError, "{repo} is not in the local cache and HF_HUB_OFFLINE is set; unset it to fetch"),
    "LocalTokenNotFoundError": (HubError, f"{{repo}} needs a token: {_LOGIN}"),
    "HFValidationError": (UsageError, "{repo} is not a Hub repository: {detail}"),
    "FileMetadataError": (HubError, "{endpoint} does not answer like a Hub; check HF_ENDPOINT and proxies: {detail}"),
    "XetDownloadError": (HubError, "a download from {repo} broke off: {detail}; try again"),
    "ProxyError": (HubError, "the proxy refused the way to {endpoint}: {detail}; check HTTPS_PROXY"),
    "TimeoutException": (HubError, "{endpoint} did not answer in time; try again later"),
    "ConnectError": (HubError, "{endpoint} could not be reached: {detail}; check the network and HF_ENDPOINT"),
    "HTTPError": (HubError, "the exchange with {endpoint} failed: {detail}"),
    "ValueError": (HubError, "{endpoint} answered something unexpected about {repo}: {detail}"),
    "OSError": (HubError, "the Hub cache cannot be used: {detail}; HF_HOME names its folder"),
}
# What is told apart by status where the class is the general one.
_STATUS_RULES: Mapping[int, tuple[type[AdapterHubError], str]] = {
    401: (HubError, f"{{endpoint}} wants a valid token for {{repo}}: {_LOGIN}"),
    403: (
        HubError,
        f"the token may not do this with {{repo}}: {{detail}}; with one that may, {_LOGIN}",
    ),
    404: (NotFound, f"there is no {{repo}} on {{endpoint}}; if it is private, {_LOGIN}"),
    409: (Conflict, "{repo} is being changed by someone else: {detail}; try again"),
    412: (Conflict, "someone else committed to {repo} meanwhile; look at it, then push again"),
    413: (HubError, "the Hub finds the upload to {repo} too large: {detail}"),
    429: (HubError, "{endpoint} says there were too many requests; try again later"),
}
# Wrappers: what happened is in their cause.
_WRAPPERS = frozenset({"RuntimeError", "ValueError", "LocalEntryNotFoundError", "IncompleteSnapshotError"})


def translate(error: BaseException, repo_id: str) -> AdapterHubError | None:
    """Return our error for a foreign one raised while dealing with `repo_id`; None where it is none of the Hub's."""
    while type(error).__name__ in _WRAPPERS and _rule(error.__cause__) is not None:
        assert error.__cause__ is not None
        error = error.__cause__
    rule = _rule(error)
    if rule is None:
        return None
    kind, text = rule
    detail = getattr(error, "server_message", None) or str(error)
    if "/xet-" in detail:
        text = "{endpoint} does not speak Xet, which is on: set HF_HUB_DISABLE_XET=1, then try again ({detail})"
    return kind(text.format(repo=repr(repo_id), endpoint=_endpoint(), detail=" ".join(detail.split())))


def _rule(error: BaseException | None) -> tuple[type[AdapterHubError], str] | None:
    if error is None:
        return None
    names = [cls.__name__ for cls in type(error).__mro__]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if names[0] == "HfHubHTTPError" and isinstance(status, int) and status in _STATUS_RULES:
        return _STATUS_RULES[status]
    return next((_RULES[name] for name in names if name in _RULES), None)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


@contextmanager
def _translated(repo_id: str) -> Iterator[None]:
    try:
        yield
    except AdapterHubError:
        raise
    except Exception as error:
        ours = translate(error, repo_id)
        if ours is None:
            raise
        raise ours from error
