from __future__ import annotations

from typing import Any

import pytest
import torch

from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.errors import DataError
from adapterhub.training.rows import Row, collate, encode_rows
from tests.tiny import byte_tokenizer
from tests.training.jobs import COLOURS, example

TOKENIZER = byte_tokenizer()
CONTEXT = 512
PAD, END = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def spec(kind: Any = "classification", max_length: int = 64, **prompt: Any) -> TaskSpec:
    labels = () if kind == "generation" else COLOURS
    return TaskSpec(kind, "sha256:0", max_length, labels, PromptSpec(**prompt))


def test_a_label_becomes_one_and_zero_and_the_text_its_tokens_without_eos() -> None:
    (row,) = encode_rows([example(text="abc", label="red", weight=2.0)], spec(), TOKENIZER, CONTEXT)
    assert row.target == (0.0, 1.0)
    assert row.weight == 2.0
    assert TOKENIZER.decode(row.ids) == "abc"
    assert row.start == len(row.ids) == 3


def test_soft_labels_win_over_the_label() -> None:
    soft = example(text="abc", label="red", probs={"red": 0.75, "blue": 0.25})
    assert encode_rows([soft], spec(), TOKENIZER, CONTEXT)[0].target == (0.25, 0.75)
    partial = example(text="abc", labels=["red"], probs={"red": 0.9})
    assert encode_rows([partial], spec("multilabel"), TOKENIZER, CONTEXT)[0].target == (0.0, 0.9)


def test_multilabel_targets_hold_any_number_of_ones() -> None:
    rows = encode_rows(
        [example(text="a", labels=given) for given in ([], ["red"], ["blue", "red"])],
        spec("multilabel"),
        TOKENIZER,
        CONTEXT,
    )
    assert [row.target for row in rows] == [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]


def test_a_completion_follows_the_input_and_ends_with_eos() -> None:
    (row,) = encode_rows([example(prompt="ab", completion="xyz")], spec("generation"), TOKENIZER, CONTEXT)
    assert row.start == 2
    assert TOKENIZER.decode(row.ids[2:-1]) == "xyz"
    assert row.ids[-1] == END
    # Even an empty completion has something to learn: to stop.
    (empty,) = encode_rows([example(prompt="ab", completion="")], spec("generation"), TOKENIZER, CONTEXT)
    assert empty.ids[empty.start :] == (END,)


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        (example("f.jsonl:7", text="a", label="green"), "classification", r"f\.jsonl:7: label 'green' .* blue, red"),
        (example("f.jsonl:7", text="a", labels=["green"]), "multilabel", r"f\.jsonl:7: label 'green'"),
        (example("f.jsonl:7", text="a", probs={"green": 1.0}), "classification", r"f\.jsonl:7: label 'green'"),
        (example("f.jsonl:7", text="", label="red"), "classification", r"f\.jsonl:7: .*empty"),
        (example("f.jsonl:7", label="red"), "classification", r"f\.jsonl:7: .*text"),
        (example("f.jsonl:7", text="a"), "classification", r"f\.jsonl:7: no label"),
        (example("f.jsonl:7", text="a"), "multilabel", r"f\.jsonl:7: no labels"),
        (example("f.jsonl:7", prompt="a"), "generation", r"f\.jsonl:7: no completion"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_its_place(row: Any, kind: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        encode_rows([row], spec(kind), TOKENIZER, CONTEXT)


def test_long_rows_are_counted_and_the_fitting_length_is_named() -> None:
    texts = ["ab", "abcdef", "abc", "abcdefghi"]
    rows = [example(f"f.jsonl:{i + 1}", text=text, label="red") for i, text in enumerate(texts)]
    with pytest.raises(
        DataError, match=r"2 of 4 rows are longer than max_length 4 .*f\.jsonl:2 \(6 tokens\); set max_length to 9 "
    ):
        encode_rows(rows, spec(max_length=4), TOKENIZER, CONTEXT)
    assert len(encode_rows(rows, spec(max_length=9), TOKENIZER, CONTEXT)) == 4
    with pytest.raises(DataError, match=r"shorten or remove them: the longest has 9, .* no more than 8"):
        encode_rows(rows, spec(max_length=4), TOKENIZER, 8)
    # Prompt, completion and EOS count together.
    with pytest.raises(DataError, match="to 5"):
        encode_rows([example(prompt="ab", completion="xy")], spec("generation", max_length=4), TOKENIZER, CONTEXT)


def test_padding_is_on_the_right_and_known_by_length_not_by_token() -> None:
    rows = [Row((5, PAD, 6, PAD), 2, (), 1.0, ""), Row((7, 8), 1, (), 3.0, "")]
    batch = collate(rows, PAD, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, PAD, 6, PAD], [7, 8, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.lengths.tolist() == [4, 2]
    assert batch.weights.tolist() == [1.0, 3.0]
    assert batch.tokens == 6
