"""What a file of voters is, as a hash: its code, and that of the files beside it that it imports. Nothing runs here."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from .lineage import file_hash


def source_hash(path: Path, root: Path | None = None) -> str:
    """Return the sha256 of a file's code without its comments and layout, or of its bytes where it is no Python.

    What it imports from `root`, the folder that it lies in unless one is named, counts too, and what that imports.
    """
    path = path.resolve()  # where it lies is where its imports are looked for
    root = path.parent if root is None else root.resolve()
    found: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        each = waiting.pop()
        if each in found:
            continue
        tree = _parsed(each)
        found[each] = file_hash(each) if tree is None else _hash(ast.dump(tree))
        waiting += () if tree is None else sorted(_imported(tree, each, root))
    if len(found) == 1:
        return found[path]
    others = sorted((file.relative_to(root).as_posix(), code) for file, code in found.items() if file != path)
    return _hash(repr((found[path], others)))


def _parsed(path: Path) -> ast.Module | None:
    if path.suffix != ".py":
        return None
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


def _imported(tree: ast.Module, path: Path, root: Path) -> set[Path]:
    """Return the files below `root` that a module's import statements, wherever they stand, may run."""
    found = set()
    for node in ast.walk(tree):
        for folder, names in _asked(node, path, root):
            if names[0] == "adapterhub":  # this program is no part of what somebody wrote
                continue
            for count in range(1, len(names) + 1):
                place = folder.joinpath(*names[:count])
                for file in (place.with_name(place.name + ".py"), place / "__init__.py"):
                    if file.is_relative_to(root) and file.is_file():
                        found.add(file)
    return found


def _asked(node: ast.AST, path: Path, root: Path) -> Iterator[tuple[Path, list[str]]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield root, alias.name.split(".")
    elif isinstance(node, ast.ImportFrom):
        folder = root if node.level == 0 else path.parents[min(node.level, len(path.parents)) - 1]
        before = node.module.split(".") if node.module else []
        for alias in node.names:  # what is imported from a package may be a module of it
            yield folder, [*before, alias.name]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
