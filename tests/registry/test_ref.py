from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapterhub.errors import AdapterHubError, NameTaken, RefNotFound, UsageError
from adapterhub.registry.ref import Ref, check_alias_name, check_task_name, is_digest, parse_ref
from adapterhub.registry.store import Registry

HEX = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("trec6", Ref("trec6")),
        ("trec6@3", Ref("trec6", version=3)),
        ("trec6@prod", Ref("trec6", alias="prod")),
        ("trec6@latest", Ref("trec6", alias="latest")),
        ("trec6@sha256:ab12", Ref("trec6", digest="sha256:ab12")),
        ("0.a_b-c@v1.2", Ref("0.a_b-c", alias="v1.2")),
    ],
)
def test_every_form_is_read_and_written_back(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "@3", "a@", "a@0", "a@03", "a@-1", "a@³", "a@sha256:abc", "a@sha256:ABCD", "a@sha256", "a@b@c", "A"),
        *("a/b", "../a", "a\n", "a@3\n", ".tmp-1", "a" * 65, "a@" + "b" * 65, "a@sha256:" + "a" * 65, "a@9999999999"),
        *("ä", "a\0", "a b", "a@ 3", "a@3 ", "-a"),
    ],
)
def test_what_can_name_nothing_is_refused_with_the_allowed_forms(text: str) -> None:
    with pytest.raises(RefNotFound, match="TASK@sha256") as caught:
        parse_ref(text)
    assert repr(text) in str(caught.value)


@given(st.text() | st.from_regex(r"[a-z./@~\\-]{1,12}", fullmatch=True))
@example("..")
@example("a/../../b@1")
@example("con@latest\n")
def test_any_text_is_a_safe_name_or_an_error(text: str) -> None:
    root = Path("/registry")
    try:
        ref = parse_ref(text)
    except AdapterHubError:
        return
    assert str(ref) == text
    path = root / ref.task
    assert path.parent == root
    assert ref.task not in {".", ".."}
    assert not ref.task.startswith(".")
    assert ref.task.isascii()


@given(st.text())
@example("../outside")
def test_a_ref_made_by_hand_cannot_leave_the_registry(text: str) -> None:
    # The registry's root does not exist: a name that passes leads to "no registry", any other is refused before that.
    with pytest.raises((UsageError, RefNotFound)):
        Registry(Path("/nonexistent/registry")).resolve(Ref(text))
    with pytest.raises((UsageError, RefNotFound)):
        Registry(Path("/nonexistent/registry")).versions(text)


@pytest.mark.parametrize("name", ["latest", "sha256", "sha256:ab", "sha256x"])
def test_reserved_aliases(name: str) -> None:
    with pytest.raises(NameTaken, match=name):
        check_alias_name(name)


@pytest.mark.parametrize("name", ["", "3", "12", "Prod", "-a", "a b", "a/b", "a" * 65, "a\n"])
def test_bad_aliases(name: str) -> None:
    with pytest.raises(UsageError):
        check_alias_name(name)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True).filter(str.isascii))
def test_good_task_names_pass(name: str) -> None:
    assert check_task_name(name) == name
    assert parse_ref(name) == Ref(name)


def test_digests() -> None:
    assert is_digest("sha256:" + HEX * 4)
    assert not is_digest("sha256:" + HEX * 3)
    assert not is_digest("sha256:" + HEX.upper() * 4)
    assert not is_digest(None)
