"""The registry: immutable numbered versions of adapters in plain folders, readable without this program.

Writing takes one lock a task and changes what readers see in one step, the replacement of `index.json`. Reading takes
no lock and writes nothing, so a registry may lie on a read-only disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapterhub.data.task import TaskSpec
from adapterhub.errors import AdapterHubError, BaseMismatch, Conflict, RefNotFound, UnsafeAdapter, UsageError

from .bundle import TASK_FILE, folder_name, read_text
from .card import Card
from .collect import Freed, ancestors, garbage, unborn
from .disk import TEMPORARY, explained, locked, remove, replace_file, utc_now
from .find import choose, offer
from .index import INDEX_FILE, Entry, Index, Move
from .publish import Candidate, put
from .ref import Ref, check_alias_name, check_task_name, is_task_name, parse_ref
from .verify import Problem, unfinished, verify_task, verify_version
from .version import Published, Version


class Registry:
    """A folder of tasks, each a folder of versions."""

    def __init__(self, root: Path) -> None:
        """Look at `root`; it is created by the first publish."""
        self.root = Path(root)

    @staticmethod
    def locate(option: Path | None = None) -> Path:
        """Return `option`, else $ADAPTERHUB_REGISTRY, else ./registry if it exists, else the user's data folder."""
        if option is not None:
            return option
        if named := os.environ.get("ADAPTERHUB_REGISTRY"):
            return Path(named).expanduser()
        here = Path("registry")
        if here.is_dir():
            return here
        data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return Path(data).expanduser() / "adapterhub" / "registry"

    # Reading

    def tasks(self) -> list[str]:
        """Return the names of all tasks, sorted; raises RefNotFound where there is no registry."""
        if not self.root.is_dir():
            raise RefNotFound(
                f"there is no registry at {str(self.root)!r}; name another with --registry, or publish there first"
            )
        found = (each for each in self.root.iterdir() if is_task_name(each.name) and not each.is_symlink())
        return sorted(each.name for each in found if (each / INDEX_FILE).is_file())

    def versions(self, task: str) -> list[Version]:
        """Return a task's versions, oldest first; raises RefNotFound and CorruptAdapter."""
        index = self._index(task)
        return [self._version(index, entry) for entry in index.versions]

    def resolve(self, ref: str | Ref) -> Version:
        """Return the version a ref means now; raises RefNotFound, which lists close names."""
        if isinstance(ref, str):
            ref = self._parse(ref)
        index = self._index(ref.task)
        return self._version(index, choose(index, ref))

    def has(self, task: str, digest: str) -> bool:
        """Say whether `task` has, or had, the version with exactly this digest."""
        index = self._read_index(check_task_name(task))
        if index is None:
            return False
        return any(each.digest == digest for each in (*index.versions, *(gone.entry for gone in index.deleted)))

    def verify(self, ref: str | Ref | None = None) -> list[Problem]:
        """Hash everything again, of one version or of all; returns what is wrong, and notes."""
        if ref is not None:
            return list(verify_version(self.resolve(ref)))
        self.tasks()
        return [problem for folder in sorted(self.root.iterdir()) for problem in self._verify_folder(folder)]

    # Writing

    def check_base(self, task: str, fingerprint: str) -> None:
        """Raise BaseMismatch if `task` is bound to another base: worth asking before an hour of training."""
        index = self._read_index(check_task_name(task))
        if index is not None and index.base_fingerprint != fingerprint:
            raise BaseMismatch(
                f"task {task!r} is bound to base {index.base!r} ({index.base_fingerprint}), and this adapter is for "
                f"a base with fingerprint {fingerprint}; publish it as another task, or train it on {index.base!r}"
            )

    def publish(self, task: str, folder: Path, card: Card, attached: Mapping[str, str] | None = None) -> Published:
        """Make the adapter in `folder` (its three digest files) a version of `task`, and return it.

        `attached` are texts that the version shall carry beside, by the names that ATTACHED_FILES has.
        A digest that is there already keeps its version and card. When this returns, the version is on the disk; if it
        is stopped before, the registry is as it was. Raises BaseMismatch, Conflict, CorruptAdapter, UnsafeAdapter,
        FileMissing, UsageError, Overloaded, and AdapterHubError where the disk refuses.
        """
        check_task_name(task)
        folder, card = Path(folder), card.public()
        spec = TaskSpec.from_json(read_text(folder / TASK_FILE))
        if card.base["fingerprint"] != spec.base_fingerprint:
            raise BaseMismatch(
                f"the card of {str(folder)!r} names base {card.base['fingerprint']}, its task.json "
                f"{spec.base_fingerprint}; both must name the base the adapter was trained on"
            )
        with explained(f"publish to task {task!r} in {str(self.root)!r}"), locked(self.root, task):
            self.check_base(task, spec.base_fingerprint)
            outcome = put(self.root, self._read_index(task), Candidate(task, folder, card, spec, attached or {}))
        version = self._version(outcome.index, outcome.entry)
        return Published(**vars(version), created=outcome.created)

    def alias(
        self,
        task: str,
        alias: str,
        ref: str | Ref | None,
        *,
        why: str = "",
        expected: Sequence[int | None] | None = None,
    ) -> Version | None:
        """Point `alias` at the version `ref` means now and return that version; None removes the alias.

        `why` stays in the history. With `expected` (of one version number, or None) the alias must still mean that:
        what somebody was told a moment ago still holds. Raises RefNotFound, NameTaken for a reserved name, UsageError
        for a bad name or a ref of another task, and Conflict where the alias has moved meanwhile.
        """
        check_alias_name(alias)
        self._index(task)
        with explained(f"set alias {alias!r} of task {task!r}"), locked(self.root, task):
            index = self._index(task)
            now = index.aliases.get(alias)
            if expected is not None and now not in expected:
                meant = f"{task}@{now} now" if now else "nothing any more"
                raise Conflict(f"{task}@{alias} means {meant}: somebody moved it meanwhile; compare again")
            if ref is None:
                if now is None:
                    raise RefNotFound(f"task {task!r} has no alias {alias!r}; {offer(alias, index.aliases)}")
                target = None
            else:
                target = self.resolve(ref)
                if target.task != task:
                    raise UsageError(f"{str(ref)!r} is no version of {task!r}; write {task}@NUMBER")
            number = target.version if target else None
            if number != now:
                replace_file(self.root / task / INDEX_FILE, index.with_alias(alias, number, utc_now(), why).to_json())
        return self.resolve(Ref(task, version=number)) if number else None

    def history(self, task: str) -> tuple[Move, ...]:
        """Return every move of a task's aliases, oldest first; raises RefNotFound."""
        return self._index(task).history

    def delete(self, ref: str | Ref, *, why: str = "") -> Version:
        """Take the version `ref` means now out of its task's list and return it; its files stay until `gc`.

        Its number is never given to another, and publishing the same adapter brings it back. Raises RefNotFound, and
        Conflict while an alias means it.
        """
        parsed = self._parse(ref) if isinstance(ref, str) else ref
        self._index(parsed.task)
        with explained(f"delete {str(ref)!r}"), locked(self.root, parsed.task):
            index = self._index(parsed.task)
            entry = choose(index, parsed)
            version = self._version(index, entry)
            if version.aliases:
                names = ", ".join(f"{version.task}@{name}" for name in version.aliases)
                raise Conflict(f"{version.ref} is what {names} means; move or remove that alias first")
            replace_file(self.root / parsed.task / INDEX_FILE, index.without(entry, utc_now(), why).to_json())
        return version

    def gc(self, *, dry_run: bool = False) -> list[Freed]:
        """Remove what killed writes left behind and what was deleted, unless a listed version was made from it.

        Returns what was removed, or with `dry_run` what would be. Raises CorruptAdapter, before anything is removed,
        where a task or a card cannot be read: what it needs is not known then.
        """
        self._needed()
        freed: list[Freed] = []
        with explained(f"free what {str(self.root)!r} no longer needs"):
            for task in sorted({*self.tasks(), *unborn(self.root)}):
                with locked(self.root, task):
                    found = list(garbage(self.root, task, self._read_index(task)))
                    # Asked only now: another process may have published a version that was made from one of these.
                    needed = self._needed() if any(each.digest for each in found) else set()
                    for each in found:
                        if each.digest in needed:
                            continue
                        if not dry_run:
                            remove(each.path)
                        freed.append(each)
        return freed

    # Inside

    def _needed(self) -> set[str]:
        """Return the digests that listed versions were made from."""
        return {digest for task in self.tasks() for version in self.versions(task) for digest in ancestors(version)}

    def _read_index(self, task: str) -> Index | None:
        """Return a task's index, None where there is none; `task` is checked before it becomes a path."""
        folder = self.root / check_task_name(task)
        path = folder / INDEX_FILE
        if folder.is_symlink() or path.is_symlink():
            raise UnsafeAdapter(
                f"task {task!r} in {str(self.root)!r} is a symbolic link; a registry holds plain folders"
            )
        if not path.is_file():
            return None
        return Index.from_json(read_text(path), task)

    def _index(self, task: str) -> Index:
        index = self._read_index(task)
        if index is None:
            raise RefNotFound(f"no task {task!r} in {str(self.root)!r}; {offer(task, self.tasks())}")
        return index

    def _parse(self, text: str) -> Ref:
        try:
            return parse_ref(text)
        except RefNotFound as error:
            raise RefNotFound(f"{error}; {offer(text.partition('@')[0].lower(), self.tasks())}") from error

    def _version(self, index: Index, entry: Entry) -> Version:
        return Version(
            task=index.task,
            version=entry.version,
            digest=entry.digest,
            path=self.root / index.task / folder_name(entry.digest),
            aliases=index.aliases_of(entry.version),
            created_at=entry.created_at,
            base=index.base,
            base_fingerprint=index.base_fingerprint,
            card_sha256=entry.card_sha256,
        )

    def _verify_folder(self, folder: Path) -> list[Problem]:
        """Return what is wrong with whatever lies at `folder` in the root."""
        if folder.name.startswith(TEMPORARY):
            return [unfinished(folder)]
        if folder.name.startswith(".") or (folder.is_file() and not folder.is_symlink()):
            return []
        try:
            index = self._read_index(folder.name)
        except AdapterHubError as error:
            return [Problem(folder.name, str(error))]
        if index is None:
            return [Problem(folder.name, f"holds no {INDEX_FILE}; restore it, or move the folder away")]
        return list(verify_task(folder, index, [self._version(index, entry) for entry in index.versions]))
