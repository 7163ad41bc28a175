from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapterhub.data.output import Output
from adapterhub.data.task import Calibration, PromptSpec
from adapterhub.registry.card import Card
from adapterhub.registry.model_card import model_card
from tests.tiny import make_tiny_base

from .making import FINGERPRINT, make_card, make_spec

METRICS = {
    "accuracy": {"value": 0.97, "low": 0.95, "high": 0.98},
    "macro_f1": {"value": 0.9, "low": 0.85, "high": 0.95},
}
FULL: dict[str, Any] = {
    "task": "mail",
    "digest": "sha256:" + "a" * 64,
    "labels": ("billing", "shipping", "other"),
    "metrics": METRICS,
    "measured_on": "test",
    "data": {"train": {"name": "train.jsonl", "rows": 300}, "test": {"name": "test.jsonl", "rows": 60}},
    "license": "Apache-2.0",
    "language": ("en",),
    "datasets": ("org/mails",),
    "description": "Routes mail to the right desk.",
    "training": {"steps": 30, "seed": 0},
    "packages": {"peft": "1.0"},
    "git_commit": "c" * 40,
    "recipe": {"lora": {"rank": 8}},
}


def front_of(text: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return front


def test_front_matter_is_what_the_hub_reads() -> None:
    text = model_card(make_card(**FULL), make_spec())
    front = front_of(text)
    assert front["base_model"] == "org/tiny"
    assert front["base_model_relation"] == "adapter"
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "text-classification"
    assert {"base_model:adapter:org/tiny", "lora", "adapterhub"} <= set(front["tags"])
    assert (front["license"], front["language"], front["datasets"]) == ("apache-2.0", ["en"], ["org/mails"])
    results = ModelCard(text).data.eval_results
    assert [(each.metric_type, each.metric_name, each.metric_value) for each in results] == [
        ("accuracy", "Accuracy", 0.97),
        ("f1", "Macro F1", 0.9),
    ]
    assert (results[0].dataset_name, results[0].dataset_split) == ("org/mails", "test")


def test_the_text_says_what_people_need() -> None:
    base = {"name": "tiny", "public_id": "org/tiny", "fingerprint": FINGERPRINT, "derived_from": "org/tiny, quantised"}
    text = model_card(make_card(**{**FULL, "base": base}), make_spec())
    for words in (
        *("Routes mail to the right desk.", "`billing`, `shipping`, `other`", "the test split (60 rows)"),
        *("| Accuracy | 0.9700 | 0.9500 | 0.9800 |", FINGERPRINT, "`org/tiny, quantised`"),
        *("adapterhub base pull tiny", "adapterhub pull ORG/NAME --as mail", "adapterhub predict mail"),
        *("`train.jsonl`, 300 rows", FULL["digest"]),
    ):
        assert words in text


def test_nothing_is_said_against_a_base_that_is_an_exact_copy() -> None:
    exact = {"name": "mini", "public_id": "org/mini", "fingerprint": FINGERPRINT, "derived_from": "org/mini, the same"}
    text = model_card(make_card(**{**FULL, "base": exact}), make_spec())
    assert "Where they come from: `org/mini, the same`." in text
    assert "not the same bytes" not in text


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny@main"])
def test_a_base_from_the_hub_is_pulled_at_its_commit(name: str) -> None:
    base = {"name": name, "public_id": "org/tiny", "fingerprint": FINGERPRINT, "revision": "d" * 40}
    assert f"`adapterhub base pull org/tiny@{'d' * 40}`" in model_card(make_card(base=base), make_spec())


def test_a_base_without_a_public_home_is_left_out_of_the_front_matter() -> None:
    base = {"name": "local/tiny", "public_id": "local/tiny", "fingerprint": FINGERPRINT}
    text = model_card(make_card(base=base, task="mail"), make_spec())
    front = front_of(text)
    assert "base_model" not in front
    assert "base_model_relation" not in front
    assert not any("local" in tag for tag in front["tags"])
    assert "model-index" not in front
    assert "no public home" in text
    assert "base pull" not in text


@pytest.mark.parametrize(
    ("given_name", "front"),
    [
        (None, {}),
        ("MIT", {"license": "mit"}),
        ("Our own terms (2026)", {"license": "other", "license_name": "our-own-terms-2026"}),
        ("§", {"license": "other", "license_name": "other"}),
    ],
)
def test_licenses(given_name: str | None, front: dict[str, str]) -> None:
    found = front_of(model_card(make_card(license=given_name), make_spec()))
    assert {key: found[key] for key in ("license", "license_name") if key in found} == front


@settings(max_examples=50)
@given(st.text(), st.lists(st.text(), max_size=3), st.text())
@example("\x85", [], "")
@example("\u2028 a\u2029", ["\x85"], "\x85")
def test_no_text_of_users_breaks_the_front_matter_or_the_program(name: str, labels: list[str], template: str) -> None:
    escaped = template.replace("{", "{{").replace("}", "}}") + "{text}"
    spec = make_spec(labels=tuple(labels), prompt=PromptSpec(template=escaped))
    text = model_card(make_card(task=name, labels=tuple(labels), datasets=(name,), metrics=METRICS), spec)
    assert front_of(text)["model-index"][0]["name"] == name
    compile(program(text), "card", "exec")


def program(text: str) -> str:
    found = re.search(r"```python\n(.*?)\n```\n", text, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own calls into transformers
@pytest.mark.parametrize(
    ("kind", "family", "prompt"),
    [
        ("classification", "llama", PromptSpec()),
        ("multilabel", "bert", PromptSpec(template="Subject: {subject}\n{text}")),
        ("generation", "llama", PromptSpec(style="chat", system='Say "yes".', template="Q: {prompt}")),
        ("generation", "qwen2", PromptSpec()),
        ("embedding", "llama", PromptSpec()),
        ("embedding", "bert", PromptSpec(template="{subject}: {text}")),
        ("classification", "llama", PromptSpec(template="{order-id} {class} {text} {{x}}")),
    ],
)
def test_the_program_on_the_card_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, family: str, prompt: PromptSpec
) -> None:
    import peft
    import transformers

    base = make_tiny_base(tmp_path / "base", family)
    spec = make_spec(kind, prompt=prompt, pad_token="<|pad|>")
    if kind == "embedding":
        model = transformers.AutoModel.from_pretrained(base)
    elif kind == "generation":
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    task_type = {"generation": "CAUSAL_LM", "embedding": "FEATURE_EXTRACTION"}.get(kind, "SEQ_CLS")
    config = peft.LoraConfig(task_type=task_type, r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    card = Card(kind=kind, base={"name": "t", "public_id": "org/tiny", "fingerprint": FINGERPRINT}, task="mail")
    code = program(model_card(card, spec))
    assert code.count('"org/tiny"') == code.count('"ORG/NAME"') == 1
    code = code.replace("org/tiny", str(base)).replace("ORG/NAME", str(tmp_path / "adapter"))
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    answer = capsys.readouterr().out
    if kind == "classification":
        assert answer.strip() in spec.labels
    if kind == "multilabel":
        assert answer.startswith("[")
    if kind == "embedding":
        assert answer == "torch.Size([32])\n"


@pytest.mark.parametrize(
    ("pooling", "said"), [("mean", "states.mean(0)"), ("last", "states[-1]"), ("cls", "states[0]")]
)
def test_an_embedding_card_says_how_to_make_a_vector(pooling: str, said: str) -> None:
    metrics = {name: {"value": 0.9, "low": 0.8, "high": 0.95} for name in ("recall_at_1", "recall_at_5", "mrr")}
    text = model_card(
        make_card(kind="embedding", task="search", metrics=metrics), make_spec("embedding", pooling=pooling)
    )
    front = front_of(text)
    assert front["pipeline_tag"] == "sentence-similarity"
    assert "feature-extraction" in front["tags"]
    assert "AutoModel.from_pretrained(base)" in text
    assert said in text
    assert "vector of length 1" in text
    assert "| Mean reciprocal rank | 0.9000 |" in text


def test_a_calibration_is_told_and_without_one_nothing_is() -> None:
    reasons = {"temperature_reason": "fitted on 9 rows", "reject_below_reason": "set by the recipe"}
    metrics = {**METRICS, "ece": METRICS["accuracy"], "oos_auroc": METRICS["accuracy"]}
    card = make_card(**{**FULL, "calibration": reasons, "metrics": metrics})
    text = model_card(card, make_spec(calibration=Calibration(1.5, 0.25)))
    for words in (
        "Logits are divided by a temperature of 1.5 before they become probabilities.",
        "A text whose likeliest label has a probability below 0.25 gets no label.",
        "`temperature`: fitted on 9 rows.",
        *("| Expected calibration error | 0.9700", "| Out-of-scope AUROC | 0.9700"),
    ):
        assert words in text
    assert [each["type"] for each in front_of(text)["model-index"][0]["results"][0]["metrics"]][2:] == [
        "ece",
        "roc_auc",
    ]
    assert "gets no label" not in model_card(card, make_spec(calibration=Calibration(1.5)))
    plain = model_card(make_card(**FULL), make_spec())
    assert "alibrat" not in plain
    assert "temperature" not in plain


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("least", "said"), [(0.999, "None"), (0.01, None)])
def test_the_program_on_the_card_rejects_as_the_task_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], least: float, said: str | None
) -> None:
    import peft
    import transformers

    base = make_tiny_base(tmp_path / "base")
    spec = make_spec(calibration=Calibration(20.0, least))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    code = program(model_card(make_card(task="mail"), spec))
    code = code.replace("org/tiny", str(base)).replace("ORG/NAME", str(tmp_path / "adapter"))
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    answer = capsys.readouterr().out.strip()
    assert answer == said if said else answer in spec.labels


def test_training_is_told_in_a_form_people_read() -> None:
    training = {
        "seconds": 190.1579908470003,
        "best": {"step": 85, "metric": "accuracy", "value": 0.800000011920929},
        "history": [{"step": 17}],
    }
    recipe = {"training": {"epochs": 5.0, "steps": None}}
    text = model_card(make_card(**{**FULL, "training": training, "recipe": recipe}), make_spec())
    assert "| seconds | `190.2` |" in text
    assert "| best | `step 85, metric accuracy, value 0.8` |" in text
    assert "history" not in text
    assert '| training | `{"epochs": 5.0}` |' in text


def writer(**changes: Any) -> Card:
    return make_card(**{**FULL, "kind": "generation", "labels": (), **changes})


@pytest.mark.parametrize(
    ("lora", "flags"),
    [
        ({"rank": 8}, ""),
        ({"rank": 16, "rank_pattern": {"q_proj": 17}}, " --max-lora-rank 32"),
        ({"rank": 16, "init": "pissa"}, " --max-lora-rank 32"),
        ({}, ""),
    ],
)
def test_a_task_that_writes_says_how_vllm_serves_it(lora: dict[str, Any], flags: str) -> None:
    card = writer(recipe={"lora": lora})
    text = model_card(card, make_spec("generation"))
    assert f"vllm serve BASE --enable-lora{flags} --lora-modules {card.task}=ORG/NAME" in text
    assert "With vLLM, where `BASE` is `org/tiny`:" in text


@pytest.mark.parametrize(
    ("base", "where"),
    [
        ({"derived_from": "org/tiny, quantised"}, "the folder that `adapterhub base pull tiny` names"),
        ({"name": "local/tiny", "public_id": "local/tiny", "derived_from": None}, "that base's folder"),
    ],
)
def test_where_vllm_finds_the_base(base: dict[str, Any], where: str) -> None:
    card = writer(base={**make_card().base, **base})
    assert f"With vLLM, where `BASE` is {where}:" in model_card(card, make_spec("generation"))


@pytest.mark.parametrize(
    ("kind", "lora"),
    [("classification", {"rank": 8}), ("generation", {"rank": 8, "variant": "dora"}), ("generation", {"rank": 600})],
)
def test_nothing_is_said_of_vllm_where_it_does_not_take_it(kind: str, lora: dict[str, Any]) -> None:
    card = writer(kind=kind, recipe={"lora": lora})
    assert "vllm" not in model_card(card, make_spec(kind)).lower()


def test_lineage_names_what_it_was_made_from_by_hash() -> None:
    parent, data = "sha256:" + "d" * 64, "e" * 64
    extra = {"source": {"hub": "them/tone", "commit": "f" * 40}}
    changes = {"parents": (parent,), "extra": extra, "data": {"train": {"name": "t.jsonl", "rows": 3, "sha256": data}}}
    lineage = model_card(make_card(**{**FULL, **changes}), make_spec()).split("## Lineage")[1]
    for said in (
        f"| made from | `{parent}` |",
        "| taken from | hub `them/tone`, commit",
        f"| train rows | `sha256:{data}` |",
        FULL["digest"],
    ):
        assert said in lineage
    assert "curated" not in lineage
    assert "labels" not in lineage


def test_lineage_says_how_labels_were_made_and_rows_chosen() -> None:
    made: dict[str, Any] = {
        "labelling": {"label_model": {"model": "dawid-skene"}, "voters": {"shouts": {}, "mood": {}}},
        "curation": {"kept": 18, "dropped": 42, "metric": "easy"},
    }
    lineage = model_card(make_card(**{**FULL, **made}), make_spec()).split("## Lineage")[1]
    assert "| labels | by `dawid-skene` from `shouts`, `mood` |" in lineage
    assert "| curated | 18 rows kept by `easy`, 42 left out |" in lineage
    strange = {"labelling": {"label_model": 7, "voters": []}, "curation": {"kept": 1}}
    assert "labels" not in model_card(make_card(**{**FULL, **strange}), make_spec()).split("## Lineage")[1]


def test_what_answers_look_like_is_told_and_without_a_rule_nothing_is() -> None:
    card = make_card(kind="generation")
    for output, said in (
        (Output.json({"type": "object"}), 'Every answer keeps this JSON schema:\n\n    {"type":"object"}\n'),
        (Output.choices(["yes", "no"]), 'Every answer is one of these:\n\n    ["yes","no"]\n'),
        (Output.regex("a|\n# b"), "Every answer matches this as a whole:\n\n    a|\n    # b\n"),
    ):
        assert said in model_card(card, make_spec("generation", output=output))
    assert "## Answers" not in model_card(card, make_spec("generation"))
