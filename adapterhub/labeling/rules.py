"""A file of labelling functions, loaded: its code runs here, on the user's machine and at the user's word only."""

from __future__ import annotations

import ast
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.errors import AdapterHubError, FileMissing, UsageError

from .code_hash import code_hash
from .functions import AnyFunction, LabelingFunction, ModelFunction

# What stands in votes beside voters, or is a voter of its own.
_TAKEN = ("id", "gold")  # not `votes.GOLD`: processes that run rules need no arrays


@dataclass(frozen=True)
class Rules:
    """A file's source, read once so that every process runs the same, and its functions by name, in their order."""

    path: Path
    source: bytes
    functions: dict[str, AnyFunction]

    def hash_of(self, name: str) -> str:
        """Return the code hash of a function."""
        each = self.functions[name]
        return code_hash(each.function if isinstance(each, LabelingFunction) else (each.kind, each.model, each.ask))

    def where(self, name: str) -> str:
        """Return the place of a function: "rules.py:12"."""
        each = self.functions[name]
        function = each.function if isinstance(each, LabelingFunction) else each.ask
        code = getattr(function, "__code__", None)
        if code is None or code.co_filename != str(self.path):
            return self.path.name
        return f"{self.path.name}:{code.co_firstlineno}"


def load_rules(path: Path, source: bytes | None = None) -> Rules:
    """Run a file of labelling functions and return them; `source` is its text where it was read before.

    Functions are found as variables of the file, and in lists and tuples that variables hold. Raises FileMissing, and
    UsageError where the file fails, holds no function, or two of one name.
    """
    if source is None:
        if not path.is_file():
            raise FileMissing(f"{path}: there is no such file; give a Python file of labelling functions")
        source = path.read_bytes()
    module = types.ModuleType(f"rules_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and the like look their module up there
    with beside(path.resolve().parent), redirect_stdout(sys.stderr):
        try:
            exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102
        except AdapterHubError as error:
            raise UsageError(f"{path}:{_line(error, path)}: {error}") from error
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{path}:{_line(error, path)}: the file cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    return Rules(path, source, _named(path, module))


def check_syntax(path: Path) -> None:
    """Raise UsageError where a file is no Python; nothing of it runs."""
    try:
        ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path}:{_line(error, path)}: the file cannot be loaded: {error}") from error


def _named(path: Path, module: types.ModuleType) -> dict[str, AnyFunction]:
    functions: dict[str, AnyFunction] = {}
    known: set[int] = set()
    for variable, place, each in _found(module):
        if id(each) in known:
            continue  # one function under two variables
        known.add(id(each))
        name = each.name or variable
        if name is None:
            raise UsageError(f"{path}: {place} has no name; give it one: name=…")
        if name in _TAKEN or name != name.strip() or not name.isprintable():
            raise UsageError(f"{path}: {place} is called {name!r}, which no voter may be; give it another name")
        if name in functions:
            raise UsageError(f"{path}: two functions are called {name!r}; name each once")
        functions[name] = replace(each, name=name)
    if not functions:
        raise UsageError(f"{path}: there is no labelling function; put @labeling_function on a function of an example")
    return functions


def _found(module: types.ModuleType) -> Iterator[tuple[str | None, str, AnyFunction]]:
    """Yield (variable or None, place, function)."""
    for variable, value in list(vars(module).items()):
        if isinstance(value, (LabelingFunction, ModelFunction)):
            yield variable, variable, value
        elif isinstance(value, (list, tuple)):
            for index, each in enumerate(value):
                if isinstance(each, (LabelingFunction, ModelFunction)):
                    yield None, f"{variable}[{index}]", each


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Let the file import what lies beside it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _line(error: BaseException, path: Path) -> int:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines[-1] or 1) if lines else 1
