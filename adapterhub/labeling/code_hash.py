"""What a function is, as a hash: its code, and the constants, functions and settings of its file that it uses.

Comments, layout and names of lines do not count. What comes from installed libraries counts by its name; objects whose
state cannot be seen count by their type. A change that none of this shows needs a new cache (delete its folder).
"""

from __future__ import annotations

import dis
import hashlib
import logging
import pickle
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from .sources import source_hash

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN = "adapterhub."
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis), PurePath)


def code_hash(value: Any) -> str:
    """Return 64 hex digits that change when what `value`, a function mostly, does may have changed."""
    return _digest(_describe(value, {}))


def _digest(pieces: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _describe(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    if id(value) in seen:  # recursion, or what was described already; `seen` keeps it alive, so ids stay unique
        yield f"seen {list(seen).index(id(value))}"
        return
    seen[id(value)] = value
    yield type(value).__qualname__
    if isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, types.CodeType):
        yield from _code(value, seen)
    elif isinstance(value, types.ModuleType):
        yield from _module(value)
    elif isinstance(value, type):
        yield from _class(value, seen)
    elif isinstance(value, re.Pattern):
        yield f"{value.pattern!r} {value.flags}"
    else:
        yield from _container(value, seen)


def _container(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _describe(each, seen)
    elif isinstance(value, (set, frozenset)):
        # Their order changes from process to process, so each is told by itself, knowing what holds it.
        yield from sorted(_digest(_describe(each, seen if isinstance(each, _PLAIN) else dict(seen))) for each in value)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _describe(key, seen)
            yield from _describe(each, seen)
    else:
        yield from _object(value, seen)


def _object(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, (Enum, logging.Logger)):  # a logger knows all others of its process
        yield f"{type(value).__qualname__}.{value.name}"
    elif (parts := _wrapped(value)) is not None:
        yield from _describe(parts, seen)
    elif is_dataclass(value):
        yield from _describe(type(value), seen)
        for field in fields(value):
            yield field.name
            yield from _describe(getattr(value, field.name), seen)
    elif isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
        yield f"{getattr(value, '__module__', None)}.{value.__qualname__}"
        owner = value.__self__  # of re.compile(…).search the pattern; of a module's function the module
        if owner is not None and not isinstance(owner, types.ModuleType):
            yield from _describe(owner, seen)
    elif hasattr(value, "tobytes") and hasattr(value, "shape"):  # an array of numpy
        yield f"{getattr(value, 'dtype', '')} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif hasattr(value, "__dict__"):
        yield from _describe(type(value), seen)
        yield from _describe(dict(vars(value)), seen)
    else:
        with suppress(Exception):  # a date, a deque and their like; an open file or a lock says its type only
            yield pickle.dumps(value, protocol=4).hex()


def _wrapped(value: Any) -> tuple[Any, ...] | None:
    """Return what a function is wrapped with, and itself; None for what wraps none."""
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, (classmethod, staticmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    return None


def _function(value: types.FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    if not _is_own(value.__module__, value.__code__.co_filename):
        yield f"{value.__module__}.{value.__qualname__}"
        return
    yield from _describe(value.__code__, seen)
    file = Path(value.__code__.co_filename)
    if _imports(value.__code__) and file.is_file():  # what is imported in its body is none of its globals
        yield source_hash(file)
    yield from _describe((value.__defaults__, value.__kwdefaults__), seen)
    for cell in value.__closure__ or ():
        try:
            yield from _describe(cell.cell_contents, seen)
        except ValueError:  # a variable that is not set yet
            yield "empty"
    for name in sorted(_names(value.__code__)):
        if name in value.__globals__:
            yield name
            yield from _describe(value.__globals__[name], seen)


def _code(value: types.CodeType, seen: dict[int, Any]) -> Iterator[str]:
    yield value.co_code.hex()
    yield repr((value.co_names, value.co_varnames, value.co_freevars, value.co_argcount, value.co_flags))
    for each in value.co_consts:
        yield from _describe(each, seen)


def _imports(code: types.CodeType) -> bool:
    """Say whether code, or what is defined in it, has an import statement."""
    inside = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return any(each.opname == "IMPORT_NAME" for each in dis.get_instructions(code)) or any(map(_imports, inside))


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            found |= _names(each)
    return found


def _module(value: types.ModuleType) -> Iterator[str]:
    """Yield a module's name and, of the user's own, the code of it, of all in its folder where it is a package.

    What these import from where they lie counts too.
    """
    yield value.__name__
    file = Path(getattr(value, "__file__", None) or "")
    if not file.is_file() or f"{value.__name__}.".startswith(_OWN) or not _is_own(value.__name__, str(file)):
        return
    root = _root(file, value.__name__)
    for each in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
        yield source_hash(each, root)


def _root(file: Path, name: str) -> Path:
    """Return the folder that a module of this name was imported from."""
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[min(depth, len(file.parents) - 1)]


def _class(value: type, seen: dict[int, Any]) -> Iterator[str]:
    yield f"{value.__module__}.{value.__qualname__}"
    file = getattr(sys.modules.get(value.__module__), "__file__", None)
    if file is None or not _is_own(value.__module__, file):
        return
    for name, each in sorted(vars(value).items()):
        # What Python keeps in a class for itself is named so too, but is no function.
        if not (name.startswith("__") and name.endswith("__")) or callable(each):
            yield name
            yield from _describe(each, seen)
    for base in value.__mro__[1:-1]:
        yield from _describe(base, seen)


def _is_own(module: str | None, file: str) -> bool:
    """Say whether code is the user's, or of this program, and not a library's."""
    return f"{module}.".startswith(_OWN) or not file.startswith((*_LIBRARIES, "<frozen"))
