"""What other engines refuse is said by `recipe check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.pipeline.check import check_recipe
from tests.pipeline.toys import write_recipe


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({}, []),
        ({"rank": 512}, []),
        ({"variant": "dora"}, ["vLLM refuses it"]),
        ({"rank": 600}, ["rank 600; vLLM takes"]),
        ({"rank": 300, "init": "pissa"}, ["rank 600 (pissa"]),
        ({"rank": 4, "rank_pattern": {"q_proj": 513}}, ["rank 513"]),
    ],
)
def test_what_vllm_refuses_is_a_warning(tmp_path: Path, lora: dict[str, Any], said: list[str]) -> None:
    report = check_recipe(write_recipe(tmp_path, lora=lora))
    assert report.ok
    found = [each for each in report.warnings if "vLLM" in each]
    assert len(found) == len(said)
    assert all(part in each for part, each in zip(said, found, strict=True))
