"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Tests train on the CPU also where there is a GPU, whose sums come out in another order; test_devices.py is of those.
os.environ["ACCELERATE_USE_CPU"] = "true"

# People's runs look for new examples; CI judges a change by the same ones each time.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and do not trace what says nothing of branches by itself."""
    # The pages of the docs take a minute or two each: begun last, one would leave a core idle at the end.
    items.sort(key=lambda item: item.path.name != "test_docs.py")
    for item in items:
        # Tracing nearly doubles what hundreds of examples take, and a branch that only they reach wants a test that
        # names it; on the real base runs the same code as on tiny ones. The floor is held without both.
        drawn = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if drawn or item.get_closest_marker("real"):
            item.add_marker(pytest.mark.no_cover)


DATA = Path(os.environ.get("ADAPTERHUB_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no data sets at {DATA}; set ADAPTERHUB_DATA")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def plain_cpu() -> Iterator[None]:
    """Have precision "auto" mean float32 on every CPU; it is bfloat16 where that is fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapterhub.base.load._cpu_has_amx", lambda: False)
        yield
