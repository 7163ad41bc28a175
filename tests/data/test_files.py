from __future__ import annotations

import datetime
import decimal
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data import files
from adapterhub.data.example import Example, content_id
from adapterhub.data.files import likely_kind, read_examples, read_rows, read_stream
from adapterhub.data.task import Kind
from adapterhub.errors import DataError, FileMissing, UsageError

ROW = '{"text": "a", "label": "x"}\n'


def write(folder: Path, text: str | bytes, name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def read(file: Path, kind: Kind = "classification", **options: Any) -> list[Example]:
    return list(read_examples(file, kind, **options))


def refused(file: Path, kind: Kind = "classification", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(file, kind, **options)
    return str(caught.value)


class TestJsonl:
    def test_everything_on_a_row_arrives(self, tmp_path: Path) -> None:
        row = {
            "id": 7,
            "text": "a",
            "label": "x",
            "weight": 2,
            "probs": {"x": 0.9, "y": 0.1},
            "source": "s",
            "lang": "de",
        }
        (example,) = read(write(tmp_path, json.dumps(row)))
        assert (example.id, example.weight, example.probs, example.source) == ("7", 2.0, {"x": 0.9, "y": 0.1}, "s")
        assert example.fields == {"text": "a", "label": "x", "lang": "de"}
        assert example.where == f"{tmp_path / 'rows.jsonl'}:1"

    def test_blank_lines_and_a_byte_order_mark_are_skipped_and_lines_still_count(self, tmp_path: Path) -> None:
        file = write(
            tmp_path, b"\xef\xbb\xbf" + b"\n" + ROW.encode() + b"  \r\n" + b'{"text": "\xc3\xbc", "label": "x"}'
        )
        examples = read(file)
        assert [example.where for example in examples] == [f"{file}:2", f"{file}:4"]
        assert examples[1].text == "ü"

    def test_nulls_are_absent(self, tmp_path: Path) -> None:
        (example,) = read(write(tmp_path, '{"id": null, "weight": null, "text": "a", "label": "x", "note": null}'))
        assert example.fields == {"text": "a", "label": "x"}
        assert example.id == content_id(example.fields)

    def test_reading_streams(self, tmp_path: Path) -> None:
        examples = read_examples(write(tmp_path, ROW + "not JSON\n"), "classification")
        assert next(examples).text == "a"
        with pytest.raises(DataError):
            next(examples)

    def test_equal_rows_get_different_ids_in_order(self, tmp_path: Path) -> None:
        first, second, third = read(write(tmp_path, ROW * 3))
        assert (second.id, third.id) == (f"{first.id}-2", f"{first.id}-3")

    def test_explicit_ids_may_not_repeat(self, tmp_path: Path) -> None:
        row = '{"id": "q1", "text": "%s", "label": "x"}\n'
        message = refused(write(tmp_path, row % "a" + row % "b"))
        assert "rows.jsonl:2" in message
        assert "'q1'" in message
        assert "rows.jsonl:1" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "caf\xe9", "label": "x"}', "not UTF-8 (byte 0xe9 in column 14)"),
        (b'{"text": "a", "label": "x"', "not valid JSON"),
        (b'{"text": "a", "label": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'["a", "x"]', "is not an object"),
        (b'{"text": "\\ud83d", "label": "x"}', "\\ud83d is half of a character"),
        (b'{"label": "x"}', "the field 'text' is missing"),
        (b'{"text": "a"}', "the field 'label' is missing"),
        (b'{"text": 5, "label": "x"}', "text is 5; expected text"),
        (b'{"text": "a", "label": 3}', 'label 3 is a number; labels are names, so quote it: "3"'),
        (b'{"text": "a", "label": true}', "label true is a number"),
        (b'{"text": "a", "label": ["x"]}', 'label ["x"] is not text'),
        (b'{"text": "a", "label": " "}', "is empty"),
        (b'{"text": "a", "label": "zebra"}', "unknown label 'zebra'; the labels are x, yellow"),
        (b'{"text": "a", "label": "yelow"}', "did you mean 'yellow'?"),
        (b'{"text": "a", "label": "x", "weight": 0}', "weight is 0"),
        (b'{"text": "a", "label": "x", "weight": "2"}', 'weight is "2"'),
        (b'{"text": "a", "label": "x", "weight": true}', "weight is true"),
        (b'{"text": "a", "label": "x", "weight": 1e999}', "weight is Infinity"),
        (b'{"text": "a", "label": "x", "probs": [1]}', "probs is [1]"),
        (b'{"text": "a", "label": "x", "probs": {"x": 1.5}}', "probs gives 'x' 1.5"),
        (b'{"text": "a", "label": "x", "probs": {"x": 0.5, "yellow": 0.4}}', "probs sum to 0.9"),
        (b'{"text": "a", "label": "x", "probs": {"q": 1}}', "unknown label 'q'"),
        (b'{"text": "a", "label": "x", "id": ""}', 'id is ""'),
        (b'{"text": "a", "label": "x", "id": 1.5}', "id is 1.5"),
        (b'{"text": "a", "label": "x", "source": 4}', "source is 4"),
    ],
)
def test_a_bad_classification_row_is_refused_with_its_place(tmp_path: Path, line: bytes, said: str) -> None:
    file = write(tmp_path, ROW.encode() + line + b"\n")
    message = refused(file, labels=["x", "yellow"])
    assert message.startswith(f"{file}:2: ")
    assert said in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, "the field 'labels' is missing"),
        ({"text": "a", "labels": "x"}, 'labels is "x"; expected a list'),
        ({"text": "a", "labels": ["x", 1]}, "label 1 is a number"),
        ({"text": "a", "labels": ["x", "x"]}, "label 'x' is given twice"),
        ({"text": "a", "labels": ["x", "n"]}, "unknown label 'n'"),
    ],
)
def test_a_bad_multilabel_row_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    assert said in refused(write(tmp_path, json.dumps(row)), "multilabel", labels=["x", "y"])


def test_multilabel_rows(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": []}, {"text": "b", "labels": ["y", "x"], "probs": {"x": 0.9, "y": 0.8}}]
    none, both = read(write(tmp_path, "\n".join(map(json.dumps, rows))), "multilabel")
    assert none.labels == ()
    assert both.labels == ("y", "x")
    assert both.probs == {"x": 0.9, "y": 0.8}


USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "the field 'completion' is missing"),
        ({"completion": "a"}, "the field 'prompt' is missing"),
        ({"prompt": "a", "completion": {"x": 1}}, "write a JSON answer as a string"),
        ({"prompt": "a", "completion": "b", "probs": {"b": 1}}, "generation has none"),
        ({"prompt": "a", "messages": [USER, ANSWER]}, "both prompt and messages"),
        ({"messages": []}, "messages is []"),
        ({"messages": "hi"}, 'messages is "hi"'),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        (
            {"messages": [USER, {"role": "boss", "content": "x"}]},
            "role 'boss'; expected one of system, user, assistant",
        ),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "messages[0] has content null"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "messages[0] has 'weight'"),
        ({"messages": [ANSWER]}, "no turn but the assistant's"),
        ({"messages": [USER]}, "without an assistant turn"),
        ({"messages": [USER, ANSWER], "completion": "x"}, "a completion and a final assistant message"),
    ],
)
def test_a_bad_generation_row_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    assert said in refused(write(tmp_path, json.dumps(row)), "generation")


def test_generation_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "", "asked": ["time"]},
        {"messages": [{**USER, "name": None}, ANSWER]},
        {"messages": [USER], "completion": "hello"},
    ]
    plain, chat, split = read(write(tmp_path, "\n".join(map(json.dumps, rows))), "generation")
    assert plain.completion == ""
    assert plain.fields["asked"] == ["time"]
    assert chat.completion == split.completion == "hello"
    assert chat.prompt_messages == split.prompt_messages == (USER,)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, 'the field \'rejected\' is missing; expected {"prompt": "…", "chosen"'),
        ({"prompt": "a", "completion": "b"}, "the field 'chosen' is missing"),
        ({"chosen": "a", "rejected": "b"}, "the field 'prompt' is missing"),
        ({"prompt": "a", "chosen": {"x": 1}, "rejected": "b"}, "write a JSON answer as a string"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "probs": {"b": 1}}, "preference has none"),
        ({"prompt": "a", "messages": [USER], "chosen": "b", "rejected": "c"}, "both prompt and messages"),
        ({"messages": [USER, ANSWER], "chosen": "b", "rejected": "c"}, "the messages end with the assistant's turn"),
        ({"messages": [], "chosen": "b", "rejected": "c"}, "messages is []"),
    ],
)
def test_a_bad_preference_row_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = write(tmp_path, json.dumps(row))
    message = refused(file, "preference")
    assert message.startswith(f"{file}:1: ")
    assert said in message


def test_preference_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "chosen": "", "rejected": "x", "weight": 2},
        {"messages": [USER], "chosen": "hello", "rejected": "go away"},
    ]
    plain, chat = read(write(tmp_path, "\n".join(map(json.dumps, rows))), "preference")
    assert (plain.completions, plain.weight, plain.text) == (("", "x"), 2.0, "a")
    assert chat.completions == ("hello", "go away")
    assert chat.prompt_messages == (USER,)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, "the field 'positive' is missing"),
        ({"positive": "a"}, "the field 'text' is missing"),
        ({"text": "a", "positive": 3}, "positive is 3; expected text"),
        ({"text": "a", "positive": "b", "negative": ["c"]}, 'negative is ["c"]; expected text'),
        ({"text": "a", "positive": "b", "negative": "b"}, "negative is the row's own positive"),
        ({"text": "a", "positive": "b", "negative": "a"}, "negative is the row's own text"),
    ],
)
def test_a_bad_embedding_row_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    assert said in refused(write(tmp_path, json.dumps(row)), "embedding")


def test_embedding_rows(tmp_path: Path) -> None:
    file = write(tmp_path, "text,positive,negative\na,b,c\nd,e,\n", "rows.csv")
    both, one = read(file, "embedding")
    assert (both.text, both.positive, both.negative) == ("a", "b", "c")
    assert (one.positive, one.negative) == ("e", None)
    (bare,) = read_examples(write(tmp_path, '{"text": "a"}'), "embedding", labelled=False)
    assert bare.positive is None


class TestCsv:
    def test_cells_become_what_they_mean(self, tmp_path: Path) -> None:
        file = write(
            tmp_path,
            'id,text,label,weight,probs,note\r\n,"a, ""quoted""\nover two lines",1,2.5,"{""1"": 1}",\r\n'
            "\r\nq,b,x,,,n\r\n",
            "rows.csv",
        )
        first, second = read(file)
        assert first.text == 'a, "quoted"\nover two lines'
        assert (first.label, first.weight, first.probs) == ("1", 2.5, {"1": 1.0})
        assert first.where == f"{file}:2"
        assert first.fields["note"] == ""
        assert (second.id, second.weight, second.where) == ("q", 1.0, f"{file}:5")

    def test_labels_by_bars_or_json(self, tmp_path: Path) -> None:
        file = write(tmp_path, 'text,labels\na,x | y\nb,\nc,"[""x|y""]"\n', "rows.csv")
        assert [example.labels for example in read(file, "multilabel")] == [("x", "y"), (), ("x|y",)]

    def test_the_same_rows_have_the_same_ids_as_in_jsonl(self, tmp_path: Path) -> None:
        (from_csv,) = read(write(tmp_path, "label,text\nx,a\n", "rows.csv"))
        (from_jsonl,) = read(write(tmp_path, ROW))
        assert from_csv.id == from_jsonl.id

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"text,label\na,x\nb\n", ":3: the row has 1 cells but the header has 2"),
            (b"text,label\na,b,x\n", ":2: the row has 3 cells"),
            (b"text,text\na,x\n", ":1: the CSV header names column 'text' twice"),
            (b"text,\na,x\n", ":1: column 2 of the CSV header has no name"),
            (b'text,label\n"a"b,x\n', ":2: not valid CSV"),
            (b'text,label\n"a,x\nb,y\n', ":2: not valid CSV"),
            (b"text,label\na,x\ncaf\xe9,x\n", ":3: not UTF-8"),
            (b"text,label\na,\n", ":2: the field 'label' is missing"),
            (b"text,label,weight\na,x,heavy\n", ':2: weight is "heavy"'),
            (b"text,label,weight\na,x,nan\n", ":2: weight is NaN"),
            (b"text,label,probs\na,x,{x\n", ":2: column 'probs' is not valid JSON"),
            (b"text;label\na;x\n", ":2: the field 'text' is missing"),
            (b"text,label\n", "rows.csv: the file is empty"),
        ],
    )
    def test_a_bad_file_is_refused_with_its_line(self, tmp_path: Path, text: bytes, said: str) -> None:
        assert said in refused(write(tmp_path, text, "rows.csv"))


class TestParquet:
    def test_tables_read_as_records(self, tmp_path: Path) -> None:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [
            {
                "text": "a",
                "label": "x",
                "day": datetime.date(2024, 5, 1),
                "price": decimal.Decimal("1.50"),
                "score": 0.5,
            },
            {"text": "b", "label": "y", "day": None, "price": None, "score": float("nan")},
        ]
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        first, second = read(tmp_path / "rows.parquet")
        assert first.fields == {"text": "a", "label": "x", "day": "2024-05-01", "price": "1.50", "score": 0.5}
        assert second.fields == {"text": "b", "label": "y"}
        assert second.where == f"{tmp_path / 'rows.parquet'}:2"

    def test_structs_with_gaps_hold_what_is_there(self, tmp_path: Path) -> None:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [{"text": "a", "label": "x", "probs": {"x": 1.0}}, {"text": "b", "label": "y", "probs": {"y": 1.0}}]
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        assert [example.probs for example in read(tmp_path / "rows.parquet")] == [{"x": 1.0}, {"y": 1.0}]

    def test_a_column_no_prompt_can_use_is_refused(self, tmp_path: Path) -> None:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": ["a"], "label": ["x"], "image": [b"\0"]}), tmp_path / "rows.parquet")
        assert "rows.parquet:1: column 'image' holds bytes" in refused(tmp_path / "rows.parquet")

    def test_another_file_called_parquet_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        assert "not a Parquet file" in refused(write(tmp_path, ROW, "rows.parquet"))

    def test_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        file = tmp_path / "rows.parquet"
        table = arrow.table({"text": [f"text {n}" * 9 for n in range(500)], "label": ["x"] * 500})
        parquet.write_table(table, file, compression="gzip", use_dictionary=False)
        whole = file.read_bytes()
        file.write_bytes(whole[:40] + b"\xaa" * 400 + whole[440:])
        assert "rows.parquet: not a Parquet file" in refused(file)

    def test_without_pyarrow_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"adapterhub\[parquet\]"):
            read(write(tmp_path, ROW, "rows.parquet"))


class TestPlaces:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileMissing, match="there is no such file"):
            read_examples(tmp_path / "none.jsonl", "classification")

    @pytest.mark.parametrize("text", [b"", b"\n \n", b"\xef\xbb\xbf"])
    def test_an_empty_file(self, tmp_path: Path, text: bytes) -> None:
        assert "the file is empty" in refused(write(tmp_path, text))

    def test_a_folder_and_an_unknown_suffix(self, tmp_path: Path) -> None:
        assert "this is a folder" in refused(tmp_path)
        assert "unknown kind of file '.xlsx'" in refused(write(tmp_path, ROW, "rows.xlsx"))
        assert "unknown kind of file '.txt'" in refused(write(tmp_path, ROW, "rows.txt"))

    def test_a_name_too_long_for_a_file(self) -> None:
        with pytest.raises(FileMissing, match="can be no such file"):
            read(Path("x" * 5000 + ".jsonl"))

    def test_a_disk_that_fails_while_reading(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*_: object) -> Iterator[tuple[str, object]]:
            yield "rows.jsonl:1", {"text": "a", "label": "x"}
            raise OSError(5, "Input/output error")

        monkeypatch.setitem(files._READERS, ".jsonl", failing)  # type: ignore[index]
        assert refused(write(tmp_path, ROW)).endswith("rows.jsonl: the file cannot be read (Input/output error)")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, tmp_path: Path) -> None:
        file = write(tmp_path, ROW)
        file.chmod(0)
        assert "check its permissions" in refused(file)


class TestInputToPredictOn:
    def test_gold_answers_may_be_missing_but_not_wrong(self, tmp_path: Path) -> None:
        file = write(tmp_path, '{"text": "a"}\n{"text": "b", "label": "x"}\n')
        assert [example.label for example in read(file, labelled=False)] == [None, "x"]
        assert "unknown label 'x'" in refused(file, labelled=False, labels=["y"])
        (bare,) = read(write(tmp_path, '{"text": "a"}'), "multilabel", labelled=False)
        assert bare.labels is None

    def test_text_files_give_a_text_a_line(self, tmp_path: Path) -> None:
        file = write(tmp_path, "first\r\n\n second \n", "rows.txt")
        assert [e.fields for e in read(file, labelled=False)] == [{"text": "first"}, {"text": " second "}]
        assert [e.fields for e in read(file, "generation", labelled=False)] == [
            {"prompt": "first"},
            {"prompt": " second "},
        ]

    def test_messages_without_an_answer(self, tmp_path: Path) -> None:
        (example,) = read(write(tmp_path, json.dumps({"messages": [USER]})), "generation", labelled=False)
        assert example.completion is None


class TestStreams:
    def test_lines_of_json_or_of_text(self) -> None:
        assert [e.text for e in read_stream(["\n", '{"text": "a"}\n', '{"text": "b"}'], "stdin", "classification")] == [
            "a",
            "b",
        ]
        plain = list(read_stream([b"\xef\xbb\xbf\n", b"a\n", b'{"text": "b"}\n'], "stdin", "classification"))
        assert [e.text for e in plain] == ["a", '{"text": "b"}']
        assert plain[0].where == "stdin:2"

    def test_lines_are_taken_as_they_come(self) -> None:
        def lines() -> Iterator[str]:
            yield "a\n"
            pytest.fail("the second line was asked for before the first was answered")

        assert next(read_stream(lines(), "stdin", "classification")).text == "a"

    def test_labelled_streams_are_json(self) -> None:
        with pytest.raises(DataError, match="stdin:1: not valid JSON"):
            list(read_stream(["a text\n"], "stdin", "classification", labelled=True))
        with pytest.raises(DataError, match="stdin: the file is empty"):
            list(read_stream([], "stdin", "classification"))


texts = st.text(st.characters(codec="utf-8"), min_size=1)


@given(st.lists(st.tuples(texts, texts.filter(str.strip)), min_size=1))
def test_what_json_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    for ascii_only in (True, False):
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=ascii_only) for text, label in rows]
        examples = read(write(tmp_path_factory.mktemp("rows"), "\n".join(lines)))
        assert [(example.text, example.label) for example in examples] == rows
        assert len({example.id for example in examples}) == len(rows)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "label": "x"}, "classification"),
        ({"text": "a", "labels": None}, "classification"),
        ({"text": "a", "labels": []}, "multilabel"),
        ({"prompt": "p", "completion": "c"}, "generation"),
        ({"messages": []}, "generation"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference"),
        ({"text": "a", "positive": "p"}, "embedding"),
        (["no", "object"], "classification"),
    ],
)
def test_likely_kind(tmp_path: Path, row: object, kind: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n" + "not read\n")
    assert likely_kind(file) == kind
    file.write_text("")
    assert likely_kind(file) == "classification"


def test_rows_come_as_the_file_has_them(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": "x", "id": 3, "own": null}\n')
    ((record, example),) = read_rows(file, "classification")
    assert record == {"text": "a", "label": "x", "id": 3, "own": None}
    assert (example.id, example.fields) == ("3", {"text": "a", "label": "x"})
