"""Rules for answers as masks over a base's tokens, by llguidance.

Compiled grammars are kept by their rule, so that requests with the same one share it, and what it has learnt of the
vocabulary. The library is imported, and its own form of the tokenizer made, when the first rule comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapterhub.data.output import Output
from adapterhub.errors import CorruptAdapter, InvalidRequest, UnsupportedRequest

from . import grammar_check

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Between the parts of a JSON value: a space, or a line break and its indentation. With no bound, a model that is unsure
# may write spaces for ever.
WHITESPACE = r" |\r?\n[ \t]{0,16}"
# Whatever a schema says of itself under "x-guidance", these count.
JSON_OPTIONS = {
    "whitespace_pattern": WHITESPACE,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
    "json_allow_general_unicode_escapes": True,
}
# One grammar's automaton takes up to about 2 kB a state.
MOST_STATES, MOST_GRAMMARS = 10_000, 32
# Usual rules take a tenth of a second; what takes this long would go on for ever.
CHECK_SECONDS, CHECK_BYTES, CHECK_NICENESS = 5.0, 2 << 30, 5


class Matcher:
    """The engine's Constraint: one answer's place in a grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, grammar: CompiledGrammar) -> None:
        self._matcher, self._vocabulary, self._grammar = matcher, vocabulary, grammar

    def allowed(self) -> Tensor:
        """Return bool [vocabulary]: the tokens that may come next; raises InvalidRequest where the library gives up."""
        import numpy as np

        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[: self._vocabulary]
        self._check()
        if not bits.any():
            raise self._grammar.failure("no token of this base may come next")
        mask = torch.from_numpy(bits.view(np.bool_))
        missing = self._vocabulary - len(mask)
        return torch.cat([mask, torch.zeros(missing, dtype=torch.bool)]) if missing > 0 else mask

    def take(self, token: int) -> None:
        """Go on from a token; raises InvalidRequest where the library gives up."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._grammar.failure(self._matcher.get_error())


class CompiledGrammar:
    """The engine's Grammar: a rule made ready for one base. `broken` says that the library gave up on an answer."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self.broken = False

    def start(self) -> Matcher:
        """Return the beginning; it shares with all others what was found out about the vocabulary."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary, self)

    def refused(self, tokens: Sequence[int]) -> int | None:
        """Return how many of `tokens` an answer may begin with where it may not be all of them, else None."""
        matcher = self._matcher.deep_copy()
        taken = int(matcher.try_consume_tokens(list(tokens)))
        return None if taken == len(tokens) and matcher.is_accepting() else taken

    def failure(self, reason: str) -> InvalidRequest:
        """Return the error of an answer that cannot go on. What is shared may be what failed, so it is made anew."""
        self.broken = True
        return InvalidRequest(
            f"the rule for the output cannot be followed any further: {first_line(reason)}; make it simpler"
        )


class Grammars:
    """The compiled grammars of one base, the `most` used last. May be used from several threads.

    `vocabulary` is the number of the base's logits, `stop_ids` the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: frozenset[int], most: int = MOST_GRAMMARS) -> None:
        self._tokenizer, self._vocabulary, self._stop_ids, self._most = tokenizer, vocabulary, stop_ids, most
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._own: LLTokenizer | None = None
        self._kept: OrderedDict[Output, CompiledGrammar] = OrderedDict()

    def get(self, output: Output) -> CompiledGrammar:
        """Return the grammar of a rule; compiling it takes from a tenth of a second to several.

        Raises InvalidRequest saying what is wrong with the rule, UnsupportedRequest for a base that cannot follow any.
        """
        found = self._find(output)
        if found is not None:
            return found
        text = grammar_text(output)
        check_grammar(text, output)
        # One at a time: two cores are not for strangers' schemas alone.
        with self._making:
            found = self._find(output) or self._compile(text, output)
        with self._lock:
            self._kept[output] = found
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found

    def of_task(self, name: str, output: Output) -> CompiledGrammar:
        """Return the grammar of a task's own rule; raises CorruptAdapter where it cannot be followed."""
        try:
            return self.get(output)
        except UnsupportedRequest:
            raise
        except InvalidRequest as error:
            raise CorruptAdapter(f"{name!r} has a rule for its output that is wrong: {error}") from error

    def _find(self, output: Output) -> CompiledGrammar | None:
        with self._lock:
            found = self._kept.get(output)
            if found is None or found.broken:
                return None
            self._kept.move_to_end(output)
            return found

    def _compile(self, text: str, output: Output) -> CompiledGrammar:
        from llguidance import LLMatcher, LLParserLimits

        if self._own is None:
            self._own = _own_tokenizer(self._tokenizer, self._vocabulary, self._stop_ids)
        limits = LLParserLimits(max_lexer_states=MOST_STATES, verbose_errors=False)
        matcher = LLMatcher(self._own, text, log_level=0, limits=limits)
        first = matcher.deep_copy()
        first.compute_bitmask()  # which makes ready what the first token of every answer needs
        if reason := matcher.get_error() or first.get_error():
            raise refused(output, reason.replace("NoExtensionBias", "no answer can keep it"))
        grammar = CompiledGrammar(matcher, self._vocabulary)
        try:
            grammar.start().allowed()
        except InvalidRequest as error:
            raise refused(output, "this base has no token to begin with") from error
        return grammar


def check_output(output: Output) -> None:
    """Raise InvalidRequest where a rule cannot be followed; needs no base."""
    check_grammar(grammar_text(output), output)


def grammar_text(output: Output) -> str:
    """Return the library's form of a rule, which may still be wrong."""
    from llguidance import LLMatcher

    assert not output.free
    if output.kind == "regex":
        return LLMatcher.grammar_from_regex(output.rule)
    if output.kind == "choices":
        return LLMatcher.grammar_from_regex("|".join(map(_literal, json.loads(output.rule))))
    return LLMatcher.grammar_from_json_schema(output.rule, overrides=JSON_OPTIONS)  # type: ignore[arg-type]


@lru_cache(MOST_GRAMMARS)
def check_grammar(text: str, output: Output) -> None:
    """Raise InvalidRequest where the library refuses a grammar, or does not come to an end with it.

    Those that were found fine last are remembered, since a recipe's is asked for several times.
    """
    process = subprocess.Popen(  # noqa: S603 - this Python, and a file of ours
        [sys.executable, "-P", str(Path(grammar_check.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    _hold_down(process.pid)
    with process:
        try:
            said, _ = process.communicate(text.encode(), timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise refused(output, f"it is too complex, {CHECK_SECONDS:g} s were not enough to read it") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise refused(output, "it is too complex to read")
    message = said.decode()
    if message and not message.startswith("WARNING"):
        raise refused(output, message)


def refused(output: Output, reason: str) -> InvalidRequest:
    """Return the error of a rule that cannot be followed."""
    what = {"json_schema": "JSON schema", "choices": "list of choices", "regex": "regular expression"}[output.kind]
    return InvalidRequest(f"the {what} cannot be followed: {first_line(reason)}", param="output")


def first_line(reason: str) -> str:
    """Return what people need of the library's message: no dump of its state, no more than fits a line or two."""
    text = " ".join(reason.partition("\n<")[0].split())
    return text if len(text) <= 300 else text[:300] + "…"


def _hold_down(pid: int) -> None:
    """Let a process come after those that answer, and take CHECK_BYTES at most, where the system can say so."""
    with suppress(ImportError, AttributeError, OSError):
        import resource

        os.setpriority(os.PRIO_PROCESS, pid, CHECK_NICENESS)
        resource.prlimit(pid, resource.RLIMIT_AS, (CHECK_BYTES, CHECK_BYTES))


def _literal(text: str) -> str:
    """Return a regular expression that matches `text` alone."""
    return "".join(letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)


def _own_tokenizer(tokenizer: Any, vocabulary: int, stop_ids: frozenset[int]) -> LLTokenizer:
    if not stop_ids:
        raise UnsupportedRequest(
            "this base has no token that ends an answer, so no rule can hold for one", param="output"
        )
    try:
        from llguidance.hf import from_tokenizer

        # The tokenizer may know more tokens than there are logits, and the other way round.
        return from_tokenizer(tokenizer, n_vocab=max(len(tokenizer), vocabulary), eos_token=sorted(stop_ids))
    except ValueError as error:
        raise UnsupportedRequest(
            f"answers of this base cannot be made to keep a rule: {first_line(str(error))}", param="output"
        ) from error
