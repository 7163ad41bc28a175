from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adapterhub.data.files import read_examples
from adapterhub.data.hf import DatasetName, parse_dataset_name
from adapterhub.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:org/name", DatasetName("org/name")),
        ("hf:org/name:config", DatasetName("org/name", "config")),
        ("hf:org/name@test", DatasetName("org/name", None, "test")),
        ("hf:name:config@validation", DatasetName("name", "config", "validation")),
    ],
)
def test_names(text: str, name: DatasetName) -> None:
    assert parse_dataset_name(text) == name


@pytest.mark.parametrize("text", ["hf:", "hf:a:b:c", "hf:a@b@c", "hf:@test", "a/b"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="does not name a dataset"):
        parse_dataset_name(text)


def test_a_dataset_streams_with_the_names_of_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": label,
            "labels": datasets.Sequence(label),
            "n": datasets.Value("int64"),
        }
    )
    rows = {"text": ["a", "b"], "label": [1, 0], "labels": [[0, 1], []], "n": [1, 0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "set" / "test.parquet")
    name = f"hf:{tmp_path / 'set'}@test"
    first, second = read_examples(name, "classification")
    assert (first.label, second.label, first.fields["n"]) == ("yes", "no", 1)
    assert second.where == f"{name}:2"
    assert [e.labels for e in read_examples(Path(name), "multilabel")] == [("no", "yes"), ()]
    with pytest.raises(DataError, match="cannot be loaded"):
        list(read_examples(f"hf:{tmp_path / 'set'}@none", "classification"))


def test_an_unlabelled_row_of_a_dataset_has_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features).to_parquet(tmp_path / "set" / "test.parquet")
    with pytest.raises(DataError, match="the field 'label' is missing"):
        list(read_examples(f"hf:{tmp_path / 'set'}@test", "classification"))


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"adapterhub\[datasets\]"):
        list(read_examples("hf:org/name", "classification"))


def test_whatever_a_dataset_raises_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refusing(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

    monkeypatch.setattr(datasets, "load_dataset", refusing)
    with pytest.raises(DataError, match=r"hf:org/name: .*Dataset scripts are no longer supported"):
        list(read_examples("hf:org/name", "classification"))
