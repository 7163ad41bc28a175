"""The settings a sweep may try, as people write them."""

from __future__ import annotations

import optuna
import pytest

from adapterhub.errors import UsageError
from adapterhub.pipeline.space import Range, Space


def test_lists_and_ranges_are_read_as_a_recipe_reads_them() -> None:
    space = Space.parse(
        ["lora.rank=4,8", "lora.targets=all-linear,[q_proj, v_proj]"],
        ["training.learning_rate=1e-4..3e-3:log", "lora.alpha=8..16", "training.batch_size=8..64:int-log"],
    )
    assert space.choices == {"lora.rank": [4, 8], "lora.targets": ["all-linear", ["q_proj", "v_proj"]]}
    assert space.ranges["training.learning_rate"] == Range(1e-4, 3e-3, log=True, whole=False)
    assert space.ranges["lora.alpha"] == Range(8, 16, log=False, whole=False)
    assert space.ranges["training.batch_size"] == Range(8, 64, log=True, whole=True)
    assert space.size is None
    assert Space.parse(["training.learning_rate=1e-3,2e-3"], []).choices["training.learning_rate"] == [1e-3, 2e-3]


def test_a_grid_has_all_its_settings() -> None:
    space = Space.parse(["lora.rank=2,4", "training.seed=0,1,2"], [])
    assert space.size == 6
    study = optuna.create_study()
    for places in space.places():
        study.enqueue_trial(places)
    drawn = [space.draw(study.ask()) for _ in range(6)]
    assert drawn == [{"lora.rank": rank, "training.seed": seed} for rank in (2, 4) for seed in (0, 1, 2)]


def test_what_is_drawn_lies_in_its_range_and_is_printed_as_it_is() -> None:
    space = Space.parse([], ["training.learning_rate=1e-4..3e-3:log", "lora.rank=2..9:int"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        settings = space.draw(study.ask())
        assert 1e-4 <= settings["training.learning_rate"] <= 3e-3
        assert len(f"{settings['training.learning_rate']:g}") <= 9
        assert settings["lora.rank"] in range(2, 10)


@pytest.mark.parametrize(
    ("grid", "search", "said"),
    [
        ([], [], "needs something to vary"),
        (["lora.rank"], [], "expected KEY=VALUES"),
        (["data.train=a,b"], [], "data.train cannot differ"),
        (["task=a,b"], [], "task cannot differ"),
        (["lora.rank=4,4"], [], "given twice"),
        (["lora.rank=4,8"], ["lora.rank=4..8:int"], "given twice"),
        (["lora.alpha=4..8"], [], "use --search for ranges"),
        ([], ["lora.alpha=8..4"], "a range that rises"),
        ([], ["lora.alpha=0..4:log"], "above zero"),
        ([], ["lora.alpha=-..4"], "expected numbers"),
        (["lora.targets=[a"], [], "not valid YAML"),
    ],
)
def test_what_is_no_space_is_refused(grid: list[str], search: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Space.parse(grid, search)
