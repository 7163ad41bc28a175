"""Voters that were edited after they voted: what was made from their votes is stale. No code of theirs runs here.

A card says which files voters came from, but not where these lie on somebody's machine: that is kept in this machine's
cache, and where it is not known a file is looked for here, by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError
from adapterhub.folders import cache_root
from adapterhub.registry.disk import replace_file

from .prompts import read_voters
from .sources import source_hash

# Of a voter the files that may be edited, and the hashes they had: its own, and the votes that it was read from.
_FILES = (("file", "source"), ("votes_file", "votes_source"))


def voters_of(labelling: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the voters that a card or a lineage names, without what is none."""
    voters = labelling.get("voters")
    if not isinstance(voters, Mapping):
        return {}
    return {str(name): voter for name, voter in voters.items() if isinstance(voter, Mapping)}


def remember_places(task: str, digest: str, labelling: Mapping[str, Any]) -> None:
    """Keep where the voters' files of the version of `task` with this digest lie on this machine.

    A lineage may have come from another: only files that are here, as they voted, are kept.
    """
    places = {
        name: {key: voter[key] for key, source in _FILES if _is_here(voter.get(key), voter.get(source))}
        for name, voter in voters_of(labelling).items()
    }
    if any(places.values()):
        path = _places(task, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(places))


def stale_voters(
    task: str, digest: str, labelling: Mapping[str, Any], digest_of: Callable[[str], str]
) -> dict[str, str]:
    """Return, by voter, why its votes are no longer what it would say now; those that cannot be looked at are left out.

    `labelling` is what the card of the version of `task` with this digest says of how labels were made; `digest_of`
    returns the digest that a ref means now.
    """
    try:
        places = json.loads(_places(task, digest).read_text("utf-8"))
    except (OSError, ValueError):
        places = {}
    found = {}
    for name, voter in voters_of(labelling).items():
        files = {}
        known = places.get(name) if isinstance(places.get(name), dict) else {}
        for key, _ in _FILES:
            # Where this machine knows no place, the name alone: a card may be a stranger's and lead anywhere.
            files[key] = Path(known[key]) if key in known else Path(Path(str(voter.get(key, ""))).name)
        if reason := _reason(name, voter, files["file"], digest_of, known="file" in known):
            found[name] = reason
        elif voter.get("votes_file") and (reason := _edited(files["votes_file"], voter.get("votes_source"))):
            found[name] = reason if "votes_file" in known else f"{files['votes_file'].name} here has other votes"
    return found


def _is_here(file: object, source: object) -> bool:
    return isinstance(file, str) and Path(file).is_file() and source_hash(Path(file)) == source


def _places(task: str, digest: str) -> Path:
    # Two tasks may have equal adapters, made from other voters.
    return cache_root() / "voters" / f"{hashlib.sha256(f'{task}@{digest}'.encode()).hexdigest()[:16]}.json"


def _reason(name: str, voter: Mapping[str, Any], file: Path, digest_of: Callable[[str], str], *, known: bool) -> str:
    if voter.get("kind") == "adapter":
        try:
            now = digest_of(str(voter.get("adapter")))
        except AdapterHubError:
            return f"{voter.get('adapter')} is gone"
        return "" if now == voter.get("digest") else f"{voter.get('adapter')} is another version now"
    if not voter.get("file") or not file.is_file():
        return ""
    if voter.get("kind") in ("prompt", "endpoint"):
        return _changed_prompt(name, voter, file)
    reason = _edited(file, voter.get("source"))
    return f"{file.name} here is not the one that voted" if reason and not known else reason


def _edited(file: Path, source: object) -> str:
    if not file.is_file() or source_hash(file) == source:
        return ""
    return f"{file.name}{', or what it imports,' if file.suffix == '.py' else ''} was edited since"


def _changed_prompt(name: str, voter: Mapping[str, Any], file: Path) -> str:
    try:
        now = {each.name: each.vote_hash() for each in read_voters(file).voters}
    except AdapterHubError:
        return f"{file.name} cannot be read any more"
    if name not in now:
        return f"{file.name} has no voter of that name any more"
    return "" if now[name] == voter.get("hash") else f"{file.name} asks otherwise now"
