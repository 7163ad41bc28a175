"""Numbers of bytes and weights as people write them."""

from __future__ import annotations

import pytest

from adapterhub.cli.sizes import parse_size, parse_weights
from adapterhub.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("12B", 12),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("512MB", 512_000_000),
        (" 1.5 GiB ", 3 << 29),
        ("2g", 2_000_000_000),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--x") == size


@pytest.mark.parametrize(
    "text", ["", "much", "-1", "1XB", "1.GB", "1 2", "iB", "1iB", "1e9", "GB", "0.5", "1.5B", "9" * 400]
)
def test_what_is_no_size_is_quoted_with_its_option(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--adapter-memory")
    assert repr(text) in str(caught.value)
    assert "--adapter-memory" in str(caught.value)


def test_weights() -> None:
    assert parse_weights(["support=2", "a-b=0.5"], "--weight") == {"support": 2.0, "a-b": 0.5}
    assert parse_weights([], "--weight") == {}


@pytest.mark.parametrize("texts", [["a"], ["a="], ["=2"], ["a=0"], ["a=-1"], ["a=nan"], ["a=inf"], ["a=1", "a=2"]])
def test_what_is_no_weight_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--weight"):
        parse_weights(texts, "--weight")
