from __future__ import annotations

from typing import Any

import pytest
import torch

from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.errors import DataError
from adapterhub.recipe import LABELLED
from adapterhub.training.rows import FIRST, NEGATIVE, SECOND, Row, batch_of, collate, encode_rows, weigh_classes
from tests.tiny import byte_tokenizer
from tests.training.jobs import COLOURS, example

TOKENIZER = byte_tokenizer()
CONTEXT = 512
PAD, END = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def spec(kind: Any = "classification", max_length: int = 64, **prompt: Any) -> TaskSpec:
    labels = COLOURS if kind in LABELLED else ()
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


def test_a_preference_is_two_completions_of_one_prompt() -> None:
    preference = example(prompt="ab", chosen="xyz", rejected="q", weight=2.0)
    (row,) = encode_rows([preference], spec("generation"), TOKENIZER, CONTEXT)
    (other,) = row.others
    assert [TOKENIZER.decode(each.ids) for each in row.sequences] == ["abxyz<|end|>", "abq<|end|>"]
    assert row.start == other.start == 2
    assert row.ids[: row.start] == other.ids[: other.start]
    assert (row.weight, other.weight, row.target, other.target) == (2.0, 2.0, (), ())
    assert row.length == 2 * 6
    batch = collate([row], PAD, torch.device("cpu"))
    assert batch.roles.tolist() == [FIRST, SECOND]
    assert batch.targets.shape == (2, 0)


def test_an_embedding_is_a_text_its_positive_and_perhaps_a_negative() -> None:
    examples = [example(text="ab", positive="xyz", negative="q", n="1"), example(text="cd", positive="uv", n="2")]
    with_negative, without = encode_rows(examples, spec("embedding", template="{n}:{text}"), TOKENIZER, CONTEXT)
    assert [TOKENIZER.decode(each.ids) for each in with_negative.sequences] == ["1:ab", "1:xyz", "1:q"]
    assert [TOKENIZER.decode(each.ids) for each in without.sequences] == ["2:cd", "2:uv"]
    batch = collate([with_negative, without], PAD, torch.device("cpu"))
    assert batch.roles.tolist() == [FIRST, SECOND, NEGATIVE, FIRST, SECOND]
    assert batch.lengths.tolist() == [4, 5, 3, 4, 4]


def test_equal_texts_have_equal_keys_in_every_batch() -> None:
    examples = [example(text="ab", positive="xyz"), example(text="xyz", positive="ab"), example(text="a", positive="b")]
    rows = encode_rows(examples, spec("embedding"), TOKENIZER, CONTEXT)
    first, second = (collate(some, PAD, torch.device("cpu")).keys.tolist() for some in (rows[:1], rows[1:]))
    assert (first[0], first[1]) == (second[1], second[0])
    assert len({*first, *second}) == 4


def test_every_sequence_of_a_row_has_to_fit() -> None:
    rows = [example("f.jsonl:1", text="a", positive="bcdefghi")]
    with pytest.raises(DataError, match=r"1 of 1 rows .*f\.jsonl:1 \(8 tokens\); set max_length to 8 "):
        encode_rows(rows, spec("embedding", max_length=4), TOKENIZER, CONTEXT)
    rows = [example("f.jsonl:1", prompt="a", chosen="b", rejected="bcdefghi")]
    with pytest.raises(DataError, match="set max_length to 10 "):
        encode_rows(rows, spec("generation", max_length=4), TOKENIZER, CONTEXT)


def test_class_weights_multiply_the_weights_of_rows() -> None:
    labels = ["red", "red", "red", "blue"]
    rows = encode_rows([example(text="a", label=each, weight=2.0) for each in labels], spec(), TOKENIZER, CONTEXT)
    assert weigh_classes(rows, None, COLOURS) == rows
    assert [row.weight for row in weigh_classes(rows, "balanced", COLOURS)] == pytest.approx([4 / 3, 4 / 3, 4 / 3, 4.0])
    assert [row.weight for row in weigh_classes(rows, {"red": 0.5}, COLOURS)] == [1.0, 1.0, 1.0, 2.0]


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
        (example("f.jsonl:7", text="a"), "embedding", r"f\.jsonl:7: no positive"),
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
    assert sum(row.tokens for row in rows) == 6
    # The numbers are the same where nothing is padded.
    bare = batch_of(rows, torch.device("cpu"))
    assert (bare.lengths.tolist(), bare.starts.tolist()) == ([4, 2], [2, 1])
    assert bare.answer_owners.tolist() == [0, 0, 1]
