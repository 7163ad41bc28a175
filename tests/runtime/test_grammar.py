"""Rules compiled by llguidance, against an independent validator and Python's own `re`."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

import jsonschema_rs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapterhub.data.output import Output
from adapterhub.engine.request import FailedEvent, Request, Row, Sampling, TokenEvent
from adapterhub.engine.sampler import sample
from adapterhub.errors import CorruptAdapter, InvalidRequest, UnsupportedRequest
from adapterhub.runtime import grammar as module
from adapterhub.runtime import grammar_check
from adapterhub.runtime.grammar import CompiledGrammar, Grammars, check_output, first_line
from tests.tiny import SPECIALS, byte_tokenizer

END, VOCABULARY, PADDED = 2, 259, 300
# Some of JSON's own words as tokens, so that a token spans several parts of the grammar.
WORDS = ['{"', '":', '": ', '", "', '"}', '[{"', "true", "null", "],", " 1", "\n  ", "ab"]


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Have every test check its rules itself."""
    module.check_grammar.cache_clear()


def wordy_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = dict(zip(range(256), alphabet, strict=True))
    table = {letter: letter for letter in letters.values()}
    words = [word.replace(" ", "Ġ").replace("\n", "Ċ") for word in WORDS]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*SPECIALS, *table, *words]))}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=SPECIALS[0], eos_token=SPECIALS[2])


TOKENIZER = wordy_tokenizer()
# As a base whose logits are padded to a round number.
GRAMMARS = Grammars(TOKENIZER, PADDED, frozenset({END}), most=4)
CLOSERS = [END, *TOKENIZER.convert_tokens_to_ids(['"', "}", "]", '"}', "1", "0", "e", "l", "u", "a", ":", ","])]


def say(grammar: CompiledGrammar, seed: int, wander: int = 40, most: int = 600) -> str:
    """Say something by random logits; after `wander` tokens the next that closes something, so that it ends."""
    ask = Sampling(most, temperature=1.0, stop_ids=frozenset({END}), grammar=grammar)
    row = Row(Request((1,), lambda _: None, ask), -1, generator=torch.Generator().manual_seed(seed))
    noise = torch.Generator().manual_seed(seed)
    while True:
        logits = torch.randn(1, PADDED, generator=noise) * 2
        if len(row.output) > wander:
            logits[0, CLOSERS] = torch.linspace(2000, 1000, len(CLOSERS))
        (event,) = sample(logits, (row,))
        assert isinstance(event, TokenEvent), event
        if event.finish is not None:
            assert event.finish == "stop", decode(row.output)
            return decode(row.output)
        row.output.append(event.token)


def decode(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(tokens, clean_up_tokenization_spaces=False))


# The library reads a schema's numbers as doubles, and beyond these a double is not every integer.
integers = st.integers(-(2**53), 2**53)
names = st.text('abcé" \\', min_size=1, max_size=4)
leaves = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean", "null")]),
    st.builds(
        lambda least, more: {"type": "integer", "minimum": least, "maximum": least + more},
        st.integers(-1000, 1000),
        st.integers(0, 1000),
    ),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    st.lists(st.none() | st.booleans() | integers | st.text(max_size=5), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    integers.map(lambda value: {"const": value}),
    st.sampled_from(["^a{2,4}$", "^[ab]+é?$", "^[0-9]{3}-x$"]).map(lambda each: {"type": "string", "pattern": each}),
)


def around(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, Any], needed: int, more: bool) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:needed],
            "additionalProperties": more,
        }

    return st.one_of(
        st.builds(an_object, st.dictionaries(names, inner, max_size=3), st.integers(0, 3), st.booleans()),
        st.builds(
            lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
    )


schemas = st.recursive(leaves, around, max_leaves=5)


@settings(max_examples=20, deadline=None)
@given(schemas, st.integers(0, 2**31))
def test_whatever_is_said_keeps_the_schema(schema: dict[str, Any], seed: int) -> None:
    grammar, judge = GRAMMARS.get(Output.json(schema)), jsonschema_rs.validator_for(schema)
    for step in range(4):
        text = say(grammar, seed + step)
        assert judge.is_valid(json.loads(text, parse_float=a_float)), text


def a_float(text: str) -> float:
    """JSON's numbers have no end, Python's have: what is beyond is a number all the same."""
    value = float(text)
    return value if math.isfinite(value) else 1.5


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True), st.integers(0, 2**31))
def test_one_of_the_choices_is_said_and_each_can_be(choices: list[str], seed: int) -> None:
    grammar = GRAMMARS.get(Output.choices(choices))
    for step in range(4):
        assert say(grammar, seed + step) in choices
    for choice in choices:
        assert grammar.refused(TOKENIZER(choice, add_special_tokens=False)["input_ids"]) is None


@pytest.mark.parametrize("pattern", ["[a-c]{2,5}", "(yes|no)!?", r"[0-9]{4}-[0-9]{2}", "é+", "a/b[/]", r"\x{61}b?"])
def test_a_regular_expression_matches_all_that_is_said(pattern: str) -> None:
    grammar = GRAMMARS.get(Output.regex(pattern))
    for seed in range(8):
        assert re.fullmatch(pattern.replace(r"\x{61}", "a"), say(grammar, seed, wander=10))


@pytest.mark.parametrize(
    ("text", "refused_at"),
    [
        ('{"item":"a","count":[1,2]}', None),
        ('{"item": "a", "count": [1, 2]}', None),
        ('{\n  "item": "a",\n  "count": [\n    1,\n    2\n  ]\n}', None),
        ('{\r\n\t"item": "a"\r\n}', None),
        ('{"item":"é \\u00e9 \\n ☃"}', None),
        ('{  "item":"a"}', ' "item'),
        ('{"item":"a"}\n', "\n"),
        (' {"item":"a"}', " "),
        ('{"count":[1],"item":"a"}', "c"),
        ('{"item":"\\ud800"}', '"'),  # half of a character wants its other half
        ('{"item":"a\tb"}', "\t"),
        ('{"item":3}', "3"),
        ('{"item":"a"', ""),
    ],
)
def test_spaces_are_few_and_properties_in_order(text: str, refused_at: str | None) -> None:
    schema = {
        "type": "object",
        "properties": {"item": {"type": "string"}, "count": {"type": "array", "items": {"type": "integer"}}},
        "required": ["item"],
        "additionalProperties": False,
    }
    tokens = byte_tokenizer()(text)["input_ids"]
    taken = Grammars(byte_tokenizer(), VOCABULARY, frozenset({END})).get(Output.json(schema)).refused(tokens)
    if refused_at is None:
        assert taken is None
    else:
        assert taken is not None
        rest = byte_tokenizer().decode(tokens[taken:])
        assert rest.startswith(refused_at)
        assert bool(rest) == bool(refused_at)


def nested(levels: int, around: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema} if around == "array" else {"anyOf": [schema]}
    return schema


NASTY = [
    ({"type": "strng"}, "Invalid type: strng"),
    ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
    ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "Unimplemented keys"),
    ({"not": {"type": "string"}}, "Unimplemented keys"),
    ({"$ref": "https://example.com/schema.json"}, "does not fetch"),
    ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    ({"$ref": "#/$defs/none"}, "does not exist"),
    ({"$ref": "#"}, "no answer can keep it"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "no answer can keep it"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "string", "format": "horoscope"}, "Unknown format"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}, "oneOf"),
    (
        {"allOf": [{"anyOf": [{"properties": {f"k{j}{i}": {"type": "string"}}} for i in range(10)]} for j in range(5)]},
        "",
    ),
]


@pytest.mark.parametrize(("schema", "said"), NASTY)
def test_what_cannot_be_followed_is_refused_in_words(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match="the JSON schema cannot be followed: ") as raised:
        GRAMMARS.get(Output.json(schema))
    assert said in str(raised.value)
    assert raised.value.param == "output"
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "schema",
    [
        nested(30, "array"),
        nested(15, "any"),
        {"enum": [f"value {i}" for i in range(3000)]},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "^(a|b)*a(a|b){20}$"},
        {"type": "string", "pattern": "^((a{1,9}){1,9}){1,9}$"},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10**6},
        {"type": "string", "maxLength": 10**9},
        {"oneOf": [{"properties": {"t": {"const": t}}, "required": ["t"], "type": "object"} for t in "ab"]},
    ],
)
def test_what_only_looks_terrible_is_followed(schema: dict[str, Any]) -> None:
    text = say(GRAMMARS.get(Output.json(schema)), 0)
    assert jsonschema_rs.validator_for(schema).is_valid(json.loads(text))


def test_a_schema_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 1.0)
    schema = {"type": "string", "allOf": [{"pattern": f"a{i}.*b"} for i in range(60)]}
    with pytest.raises(InvalidRequest, match="too complex"):
        check_output(Output.json(schema))


def test_a_schema_that_takes_all_memory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_BYTES", 1 << 20)
    with pytest.raises(InvalidRequest, match="too complex"):
        check_output(Output.json({"type": "string"}))


def test_the_checker_says_nothing_of_what_is_fine(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Given:
        def __init__(self, text: str) -> None:
            self.text = text

        def read(self) -> str:
            return self.text

    for pattern, fine in (("a+", True), ("(a", False)):
        monkeypatch.setattr("sys.stdin", Given(module.grammar_text(Output.regex(pattern))))
        grammar_check.main()
        assert (capsys.readouterr().out == "") == fine


def test_an_expression_that_explodes_on_the_way_fails_its_answer_and_is_made_anew() -> None:
    output = Output.regex("(.{0,500}a){0,500}")
    grammar = GRAMMARS.get(output)
    assert GRAMMARS.get(output) is grammar
    ask = Sampling(5000, temperature=1.0, stop_ids=frozenset({END}), grammar=grammar)
    row = Row(Request((1,), lambda _: None, ask), -1, generator=torch.Generator().manual_seed(0))
    event = None
    while not isinstance(event, FailedEvent):
        logits = torch.randn(1, PADDED) * 3
        logits[0, END] = -100
        (event,) = sample(logits, (row,))
        if isinstance(event, TokenEvent):
            assert len(row.output) < 4000, "it never became too complex"
            row.output.append(event.token)
    assert isinstance(event.error, InvalidRequest)
    assert "cannot be followed any further" in str(event.error)
    again = GRAMMARS.get(output)
    assert again is not grammar
    assert again.start().allowed().any()


def test_a_token_that_was_not_allowed_fails() -> None:
    matcher = GRAMMARS.get(Output.regex("a")).start()
    with pytest.raises(InvalidRequest, match="any further"):
        matcher.take(int(TOKENIZER.convert_tokens_to_ids("b")))


def test_padding_is_never_allowed() -> None:
    mask = GRAMMARS.get(Output.json({})).start().allowed()
    assert mask.shape == (PADDED,)
    assert not mask[len(TOKENIZER) :].any()
    assert not mask[:3].any()
    fewer = Grammars(TOKENIZER, 200, frozenset({END})).get(Output.json({})).start().allowed()
    assert torch.equal(fewer, mask[:200])


def test_a_base_without_the_tokens_for_it_cannot_follow_a_rule() -> None:
    with pytest.raises(InvalidRequest, match="no token to begin with"):
        Grammars(TOKENIZER, 3, frozenset({END})).get(Output.regex("a"))


def test_a_rule_that_is_too_large_for_this_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STATES", 1)
    with pytest.raises(InvalidRequest, match="too many states"):
        Grammars(TOKENIZER, PADDED, frozenset({END})).get(Output.json({}))


def test_what_was_found_fine_is_not_read_again_and_what_was_not_is(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **more: started.append(given) or popen(*given, **more))
    for _ in range(2):
        check_output(Output.regex("never asked elsewhere"))
    assert len(started) == 1
    for count in (2, 3):
        with pytest.raises(InvalidRequest):
            check_output(Output.regex("(never"))
        assert len(started) == count


def test_who_is_interrupted_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def interrupted(process: subprocess.Popen[bytes], *_: object, **__: object) -> None:
        made.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_output(Output.regex("a"))
    assert made[0].returncode == -9


def test_the_grammars_used_last_are_kept() -> None:
    grammars = Grammars(TOKENIZER, PADDED, frozenset({END}), most=2)
    first, second, third = (Output.regex(pattern) for pattern in ("a", "b", "c"))
    kept = grammars.get(first)
    grammars.get(second)
    assert grammars.get(first) is kept
    grammars.get(third)
    assert grammars.get(first) is kept
    assert len(grammars._kept) == 2


def test_one_grammar_is_compiled_once_by_many_threads() -> None:
    grammars, found = Grammars(TOKENIZER, PADDED, frozenset({END})), list[CompiledGrammar]()
    threads = [threading.Thread(target=lambda: found.append(grammars.get(Output.regex("abc")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1


def test_a_base_that_cannot_follow_any_rule_says_so() -> None:
    with pytest.raises(UnsupportedRequest, match="no token that ends an answer"):
        Grammars(TOKENIZER, PADDED, frozenset()).get(Output.regex("a"))
    with pytest.raises(UnsupportedRequest, match="Only fast tokenizers"):
        Grammars(Slow(), PADDED, frozenset({END})).of_task("task", Output.regex("a"))


class Slow:
    def __len__(self) -> int:
        return VOCABULARY


def test_a_tasks_own_rule_that_is_wrong_is_the_tasks_fault() -> None:
    with pytest.raises(
        CorruptAdapter, match="'orders' has a rule for its output that is wrong: the regular expression"
    ):
        GRAMMARS.of_task("orders", Output.regex("(a"))


def test_messages_are_cut() -> None:
    assert first_line("  a\n b\n<state>\nsecrets") == "a b"
    assert first_line("x" * 400) == "x" * 300 + "…"
