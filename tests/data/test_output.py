from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.output import MOST_CHARACTERS, MOST_CHOICES, MOST_DEPTH, Output
from adapterhub.errors import InvalidRequest

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
outputs = (
    st.builds(Output.json, st.dictionaries(st.text(), values, max_size=4))
    | st.builds(Output.choices, st.lists(st.text(min_size=1), min_size=1, max_size=5))
    | st.builds(Output.regex, st.text(min_size=1))
)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


@given(outputs)
def test_what_is_written_is_read_back_to_the_letter(output: Output) -> None:
    record = json.loads(json.dumps(output.to_record(), sort_keys=True))
    assert Output.from_record(record) == output
    assert not output.free


def test_the_order_of_properties_is_kept() -> None:
    schemas = [{"properties": {"b": {}, "a": {}}}, {"properties": {"a": {}, "b": {}}}]
    first, second = map(Output.json, schemas)
    assert first != second
    assert list(json.loads(first.rule)["properties"]) == ["b", "a"]


def test_a_choice_given_twice_is_one() -> None:
    assert Output.choices(["yes", "no", "yes"]) == Output.choices(("yes", "no"))


def test_text_is_no_rule() -> None:
    assert Output.text().free


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        (Output.json, [], r"a JSON schema is an object; got \[\]"),
        (Output.json, "{}", "a JSON schema is an object"),
        (Output.json, {"const": float("nan")}, "cannot be written as JSON"),
        (Output.json, {"const": {1, 2}}, "cannot be written as JSON"),
        (Output.json, {"const": "\ud800"}, "half of a character, U\\+D800"),
        (Output.json, nested(MOST_DEPTH + 1), f"nested more than {MOST_DEPTH} deep"),
        (Output.json, nested(100_000), f"nested more than {MOST_DEPTH} deep"),
        (Output.json, {"const": "x" * MOST_CHARACTERS}, f"at most {MOST_CHARACTERS} are accepted"),
        (Output.choices, "yes", "choices are a list of texts; got 'yes'"),
        (Output.choices, ["yes", 3], "choices are a list of texts"),
        (Output.choices, {"yes": 1}, "choices are a list of texts"),
        (Output.choices, [], "there are 0 choices; give 1 to 1000"),
        (Output.choices, ["x"] * (MOST_CHOICES + 1), "there are 1001 choices"),
        (Output.choices, ["yes", ""], "choice 2 is empty"),
        (Output.choices, ["\udfff"], "half of a character"),
        (Output.regex, "", "a regular expression is a text that is not empty"),
        (Output.regex, 3, "got 3"),
        (Output.regex, "\ud800", "half of a character"),
        (Output.regex, "x" * (MOST_CHARACTERS + 1), "65537 characters"),
    ],
)
def test_what_is_no_rule_is_refused(make: Any, given: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as raised:
        make(given)
    assert raised.value.param == "output"


def test_the_deepest_schema_is_accepted() -> None:
    assert Output.json(nested(MOST_DEPTH))
