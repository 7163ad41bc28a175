"""Tokens used: exact whoever counts at the same time, and whatever stops them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.server.ledger import Ledger, Meter, day_of, seconds_to_next_day
from adapterhub.server.rate import RateLimiter

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
TAKER = """
import sys
from pathlib import Path
from adapterhub.server.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
print(sum(ledger.take("a", "2026-03-01", 3, 1000) for _ in range(200)), flush=True)
{end}
"""


def test_days() -> None:
    assert day_of(NOON) == "2026-03-01"
    assert seconds_to_next_day(NOON) == 12 * 3600
    assert day_of(NOON + seconds_to_next_day(NOON)) == "2026-03-02"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.sampled_from([None, 50, 100])), max_size=30))
@settings(deadline=None)
def test_no_limit_is_ever_passed(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int, int | None]]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "used")
    model = {"a": 0, "b": 0}
    for key, tokens, limit in asked:
        fits = limit is None or model[key] + tokens <= limit
        assert ledger.take(key, "2026-03-01", tokens, limit) is fits
        model[key] += tokens if fits else 0
        assert ledger.used(key, "2026-03-01") == model[key]
    ledger.close()


def test_threads_share_a_limit_exactly(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "used")
    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(lambda _: ledger.take("a", "2026-03-01", 7, 1000), range(400)))
    assert taken == 1000 // 7
    assert ledger.used("a", "2026-03-01") == 7 * taken
    assert ledger.used("a", "2026-03-02") == 0
    ledger.close()


def test_processes_share_a_limit_exactly_and_a_kill_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "used"
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    script = TAKER.format(end=kill)
    commands = [[sys.executable, "-c", script, str(path)] for _ in range(3)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    taken = sum(int(child.communicate()[0]) for child in children)
    assert [child.returncode for child in children] == [-9] * 3
    assert taken == 333
    ledger = Ledger(path)
    assert ledger.used("a", "2026-03-01") == 999
    assert path.stat().st_mode & 0o777 == 0o600
    ledger.close()


def test_a_meter_gives_back_what_was_not_needed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "used", clock=lambda: NOON)
    meter = Meter(ledger, "a", 100)
    assert meter.take(60)
    assert not meter.take(41)
    assert meter.take(40)
    assert ledger.used("a", "2026-03-01") == 100
    assert meter.seconds_left == 12 * 3600
    meter.settle(25)
    meter.settle(0)
    assert ledger.used("a", "2026-03-01") == 25
    assert not meter.take(1)  # its request is over
    ledger.close()


def test_a_meter_settles_on_the_day_it_began(tmp_path: Path) -> None:
    now = [NOON]
    ledger = Ledger(tmp_path / "used", clock=lambda: now[0])
    meter = Meter(ledger, "a", None)
    meter.take(50)
    now[0] += 86400
    meter.settle(20)
    assert ledger.used("a", "2026-03-01") == 20
    assert ledger.used("a", "2026-03-02") == 0
    ledger.close()


@given(st.lists(st.floats(0, 40), max_size=60), st.integers(1, 5))
def test_no_minute_holds_more_than_its_limit(steps: list[float], limit: int) -> None:
    now = [0.0]
    limiter = RateLimiter(lambda: now[0])
    let_in: list[float] = []
    for step in steps:
        now[0] += step
        wait = limiter.take("a", limit)
        if wait == 0:
            let_in.append(now[0])
        else:
            assert 0 < wait <= 60
            assert sum(time > now[0] - 60 for time in let_in) == limit
    for time in let_in:
        assert sum(time <= other < time + 60 for other in let_in) <= limit


def test_a_limit_that_was_lowered() -> None:
    now = [0.0]
    limiter = RateLimiter(lambda: now[0])
    for _ in range(3):
        assert limiter.take("a", 3) == 0
        now[0] += 10
    assert limiter.take("a", 1) == 50  # until the last of the three is a minute old
    assert limiter.take("b", 1) == 0
    now[0] += 50
    assert limiter.take("a", 1) == 0
