"""A hash changes with what a function does, and with nothing else."""

from __future__ import annotations

import importlib.util
import logging
import re
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from datetime import date
from enum import Enum
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from adapterhub.labeling.code_hash import code_hash
from adapterhub.labeling.rules import load_rules

HEAD = "from adapterhub.labeling import *\nimport re\n"
FILE = (
    HEAD
    + """
WORDS = {"b", "a", "c"}
LIMIT = 3
OTHER = 1

def helper(text):
    return len(text) > LIMIT

@labeling_function
def rule(example):
    if helper(example.text) and any(word in WORDS for word in example.text):
        return "x"
    return ABSTAIN
"""
)


def hash_of(folder: Path, source: str, name: str = "rule") -> str:
    path = folder / "rules.py"
    path.write_text(source)
    return load_rules(path).hash_of(name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"x"', '"y"'),
        ("LIMIT = 3", "LIMIT = 4"),
        ('"c"}', '"d"}'),
        ("len(text) > LIMIT", "len(text) >= LIMIT"),
        ("any(word", "all(word"),
    ],
)
def test_what_a_function_uses_counts(tmp_path: Path, old: str, new: str) -> None:
    assert old in FILE
    assert hash_of(tmp_path, FILE) != hash_of(tmp_path, FILE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("OTHER = 1", "OTHER = 2"),
        ("LIMIT = 3\n", "LIMIT = 3  # rows\n\n\n"),
        ('{"b", "a", "c"}', '{"c", "b", "a"}'),
        ("def rule(", "def rule("),
    ],
)
def test_what_it_does_not_use_does_not(tmp_path: Path, old: str, new: str) -> None:
    assert old in FILE
    assert hash_of(tmp_path, FILE) == hash_of(tmp_path, FILE.replace(old, new))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ('keywords("x", ["a"])', 'keywords("y", ["a"])'),
        ('keywords("x", ["a"])', 'keywords("x", ["b"])'),
        ('keywords("x", ["a"])', 'keywords("x", ["a"], case=True)'),
        ('pattern("x", "a")', 'pattern("x", "b")'),
        ('pattern("x", "a")', 'pattern("x", "a", flags=re.S)'),
        ('dictionary({"a": "x"})', 'dictionary({"a": "y"})'),
        ('length("x", most=3)', 'length("x", least=3)'),
        ('model("tone")', 'model("tone@2")'),
        ('model("tone")', 'model("tone", least=0.5)'),
        ('nearest([("a", "x")])', 'nearest([("b", "x")])'),
        ("labeling_function(lambda e: 'x')", "labeling_function(lambda e, n=[1]: 'x')"),
    ],
)
def test_parameters_of_helpers_count(tmp_path: Path, one: str, two: str) -> None:
    first, again, second = (hash_of(tmp_path, f"{HEAD}rule = {each}\n") for each in (one, one, two))
    assert first == again != second


def test_a_module_beside_the_file_counts(tmp_path: Path) -> None:
    source = "import beside_words\n" + HEAD + "@labeling_function\ndef rule(e):\n    return beside_words.say(e)\n"
    found = []
    for text in ("def say(e): return 'x'\n", "def say(e): return 'y'\n"):
        (tmp_path / "beside_words.py").write_text(text)
        sys.modules.pop("beside_words", None)
        found.append(hash_of(tmp_path, source))
    sys.modules.pop("beside_words", None)
    assert found[0] != found[1]


FORMS = {
    "a bound method of a pattern": "find = re.compile('a').search\n",
    "a list of a class": (
        "class Of:\n    words = ['a']\ndef find(text): return any(each in text for each in Of.words)\n"
    ),
    "a class method": "class Of:\n    @classmethod\n    def find(cls, text): return 'a' in text\nfind = Of.find\n",
    "a static method": "class Of:\n    @staticmethod\n    def find(text): return 'a' in text\nfind = Of.find\n",
    "a property": (
        "class Of:\n    @property\n    def word(self): return 'a'\nof = Of()\ndef find(text): return of.word in text\n"
    ),
    "a method of a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass Of:\n    least: int = 1\n"
        "    def find(self, text): return 'a' in text\nof = Of()\ndef find(text): return of.find(text)\n"
    ),
    "what a class inherits": (
        "class Base:\n    words = {'a'}\nclass Of(Base):\n    def find(self, text): return text in self.words\n"
        "find = Of().find\n"
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_written_in_another_form_counts_too(tmp_path: Path, form: str) -> None:
    rule = "@labeling_function\ndef rule(e):\n    return 'x' if find(e.text) else ABSTAIN\n"
    first, again, other = (hash_of(tmp_path, HEAD + each + rule) for each in (form, form, form.replace("'a'", "'q'")))
    assert first == again != other


@pytest.mark.parametrize("edited", ["words_far", "shelf_far.deep", "shelf_far.deeper"])
def test_what_a_module_imports_counts(tmp_path: Path, edited: str) -> None:
    files = {
        "lexicon_far": "from words_far import WORDS\ndef say(e): return WORDS[0]\n",
        "words_far": "WORDS = ['x']\n",
        "shelf_far.__init__": "",
        "shelf_far.deep": "from .deeper import WORDS\ndef say(e): return WORDS[0]\n",
        "shelf_far.deeper": "WORDS = ['x']\n",
    }
    source = (
        "import lexicon_far\nimport shelf_far.deep\n"
        + HEAD
        + "@labeling_function\ndef rule(e):\n    return lexicon_far.say(e) or shelf_far.deep.say(e)\n"
    )
    found = []
    for addition in ("", "# nothing\n", "OTHER = 1\n"):
        for name, text in files.items():
            path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + (addition if name == edited else ""))
        for name in files:
            sys.modules.pop(name.removesuffix(".__init__"), None)
        found.append(hash_of(tmp_path, source))
    for name in files:
        sys.modules.pop(name.removesuffix(".__init__"), None)
    assert found[0] == found[1] != found[2]


def test_what_libraries_have_loaded_is_no_part_of_it(tmp_path: Path) -> None:
    source = "import json\nimport adapterhub.labeling\n" + HEAD
    source += "@labeling_function\ndef rule(e):\n    return json.dumps(adapterhub.labeling.ABSTAIN and e.text)\n"
    before = hash_of(tmp_path, source)
    sys.modules["json.made_up"] = sys
    try:
        assert hash_of(tmp_path, source) == before
    finally:
        del sys.modules["json.made_up"]


def test_a_module_that_is_not_registered_counts(tmp_path: Path) -> None:
    found = []
    for text in ("WORD = 'x'\n", "WORD = 'y'\n"):
        (tmp_path / "loaded_by_hand.py").write_text(text)
        spec = importlib.util.spec_from_file_location("by_hand", tmp_path / "loaded_by_hand.py")
        assert spec is not None
        found.append(code_hash(importlib.util.module_from_spec(spec)))
    assert found[0] != found[1]


def test_an_import_in_a_function_counts(tmp_path: Path) -> None:
    source = HEAD + "@labeling_function\ndef rule(e):\n    import late_words\n    return late_words.WORD\n"
    found = []
    for text in ("WORD = 'x'\n", "WORD = 'x'  # a word\n", "WORD = 'y'\n"):
        (tmp_path / "late_words.py").write_text(text)
        found.append(hash_of(tmp_path, source))
    assert found[0] == found[1] != found[2]


class Member:
    everybody: ClassVar[set[Member]] = set()

    def __init__(self) -> None:
        Member.everybody.add(self)


def test_what_holds_itself_ends() -> None:
    member = Member()
    assert code_hash(member) == code_hash(member)
    assert code_hash(logging.getLogger("a")) == code_hash(logging.getLogger("a")) != code_hash(logging.getLogger("b"))


def test_it_is_the_same_in_another_process(tmp_path: Path) -> None:
    here = hash_of(tmp_path, FILE)
    code = (
        "import sys; from pathlib import Path; from adapterhub.labeling.rules import load_rules\n"
        "print(load_rules(Path(sys.argv[1])).hash_of('rule'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rules.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == here


class Size(Enum):
    BIG = 1
    SMALL = 2


@dataclass
class Setting:
    least: int


class Listed:
    made_of: tuple[str, ...] = ("a",)

    @classmethod
    def made(cls) -> int:
        return len(cls.made_of)

    @staticmethod
    def listed() -> str:
        return "a"


class Words(Listed):
    words: ClassVar = ["a", re.compile("b")]


class Phrases(Listed):
    words: ClassVar = ["a", re.compile("c")]

    @staticmethod
    def listed() -> str:
        return "b"


class Counter:
    size = 1

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, example: object) -> str:
        return "x" * self.least


def test_objects_count_by_what_can_be_seen_of_them() -> None:
    def recursive(n: int) -> int:
        return later + recursive(n - 1)

    first = code_hash(recursive)
    later = 3
    assert first != code_hash(recursive) == code_hash(recursive)
    with Path(__file__).open() as one, Path(__file__).open() as two:
        assert code_hash(one) == code_hash(two)  # nothing to see in them but that they are files
    pairs = [
        (Counter(1), Counter(2)),
        (Counter(1).__call__, Counter(2).__call__),
        (np.zeros(2), np.ones(2)),
        (date(2020, 1, 1), date(2020, 1, 2)),
        (deque([1]), deque([2])),
        ([1, [2]], [1, 2]),
        (len, max),
        (re.compile("a").search, re.compile("b").search),
        ("abc".count, "abd".count),
        ("abc".__contains__, "abd".__contains__),
        (Words().listed, Phrases().listed),
        (Words.made, Phrases.made),
        (Words(), Phrases()),
        (Size.BIG, Size.SMALL),
        (Setting(1), Setting(2)),
        (partial(max, 1), partial(max, 2)),
        ({"a": 1}, {"a": 2}),
        (np.mean, np.median),
        (sys, np),
        (Path("a"), Path("b")),
        (1, True),
    ]
    for one, two in pairs:
        assert code_hash(one) == code_hash(one) != code_hash(two), one
