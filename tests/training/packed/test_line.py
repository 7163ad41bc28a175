"""A packed line of several tasks: each finds its own rows, and reads what its kind reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.training.objectives import Reads
from adapterhub.training.packed.line import Line, pack
from adapterhub.training.rows import Row


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A row of one to three sequences; its completions begin anywhere but at the first token."""

    def sequence() -> Row:
        ids = tuple(draw(st.lists(st.integers(0, 2), min_size=2, max_size=6)))
        return Row(ids, draw(st.integers(1, len(ids) - 1)), (), 1.0, "")

    first, *others = [sequence() for _ in range(draw(st.integers(1, 3)))]
    return Row(first.ids, first.start, (), 1.0, "", tuple(others))


PARTS = st.lists(
    st.tuples(st.lists(rows(), min_size=1, max_size=5), st.sampled_from(get_args(Reads)), st.booleans()),
    min_size=1,
    max_size=4,
)
Part = tuple[Sequence[Row], Reads, bool]


def sequences_of(part: Part) -> list[Row]:
    return [each for row in part[0] for each in row.sequences]


def read_of(line: Line, span: int) -> list[int]:
    """The tokens of the line whose states a task reads, read by read."""
    found = line.spans[span]
    return line.needed[found.low : found.high][found.reading.index].tolist()


@given(PARTS)
def test_tasks_lie_side_by_side_and_find_their_rows(parts: list[Part]) -> None:
    line = pack(parts)
    assert line.layout.tokens == len(line.tokens)
    assert [span.start for span in line.spans] == [0, *(span.stop for span in line.spans)][:-1]
    assert [span.low for span in line.spans] == [0, *(span.high for span in line.spans)][:-1]
    assert (line.spans[-1].stop, line.spans[-1].high) == (len(line.tokens), len(line.needed))
    for part, span, places in zip(parts, line.spans, line.places, strict=True):
        for sequence, place in zip(sequences_of(part), places, strict=True):
            assert tuple(line.tokens[list(place)].tolist()) == sequence.ids
            assert all(span.start <= each < span.stop for each in place)
            assert line.layout.positions[list(place)].tolist() == list(range(len(place)))


@given(PARTS)
def test_nothing_is_shared_between_tasks(parts: list[Part]) -> None:
    line = pack(parts)
    owners = [next(i for i, s in enumerate(line.spans) if start < s.stop) for start in line.layout.starts]
    for segment, parent in enumerate(line.layout.parents):
        assert parent < 0 or owners[parent] == owners[segment]
    # A task's part of a line is what it would be alone.
    for i, part in enumerate(parts):
        alone, span = pack([part]), line.spans[i]
        assert alone.tokens.tolist() == line.tokens[span.start : span.stop].tolist()
        assert [[each + span.start for each in place] for place in alone.places[0]] == [list(p) for p in line.places[i]]
        assert [each + span.start for each in read_of(alone, 0)] == read_of(line, i)


@given(PARTS)
def test_reads_are_the_last_state_those_before_the_answer_or_all(parts: list[Part]) -> None:
    line = pack(parts)
    for i, (part, places) in enumerate(zip(parts, line.places, strict=True)):
        expected, owners, answers = [], [], []
        for number, (sequence, place) in enumerate(zip(sequences_of(part), places, strict=True)):
            wanted = {
                "last": [len(place) - 1],
                "answers": [at - 1 for at in range(sequence.start, len(place))],
                "all": list(range(len(place))),
            }[part[1]]
            expected += [place[at] for at in wanted]
            owners += [number] * len(wanted)
            answers += [sequence.ids[at + 1] for at in wanted] if part[1] == "answers" else []
        reading = line.spans[i].reading
        assert read_of(line, i) == expected
        assert reading.owner.tolist() == owners
        assert reading.answers.tolist() == answers
        # No state is computed that is not read, and none twice.
        low, high = line.spans[i].low, line.spans[i].high
        assert line.needed[low:high].tolist() == sorted(set(expected))


def test_a_task_without_sharing_lies_beside_one_that_shares() -> None:
    twice = [Row((5, 6), 1, (), 1.0, ""), Row((5, 6, 7), 1, (), 1.0, "")]
    line = pack([(twice, "last", True), (twice, "last", False)])
    assert line.tokens.tolist() == [5, 6, 7, 5, 6, 5, 6, 7]
    assert line.layout.parents == (-1, 0, -1, -1)
    assert line.needed.tolist() == [1, 2, 4, 7]
