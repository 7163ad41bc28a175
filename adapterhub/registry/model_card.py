"""README.md of a version: a Hugging Face Hub model card made from its card and task rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from adapterhub.data.task import TaskSpec

from .card import Card
from .snippet import peft_snippet, vllm_command

_METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "micro_f1": ("f1", "Micro F1"),
    "exact_match": ("exact_match", "Exact match"),
    "field_f1": ("f1", "Field F1"),
    "ece": ("ece", "Expected calibration error"),
    "in_scope_accuracy": ("accuracy", "In-scope accuracy"),
    "oos_recall": ("recall", "Out-of-scope recall"),
    "oos_auroc": ("roc_auc", "Out-of-scope AUROC"),
    "preference_accuracy": ("accuracy", "Preference accuracy"),
    "recall_at_1": ("recall", "Recall@1"),
    "recall_at_5": ("recall", "Recall@5"),
    "mrr": ("mrr", "Mean reciprocal rank"),
}
_JOBS = {
    "classification": "gives a text one of its labels",
    "multilabel": "gives a text any number of its labels",
    "generation": "answers a prompt with a text",
    "embedding": "turns a text into a vector of length 1, texts that belong together lying near each other",
}
_PIPELINE_TAGS = {"generation": "text-generation", "embedding": "sentence-similarity"}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def model_card(card: Card, spec: TaskSpec) -> str:
    """Return the whole README.md: YAML front matter as the Hub reads it, then text for people."""
    front = _dump(front_matter(card))
    sections = (
        _about(card),
        _metrics(card),
        _calibration(card, spec),
        _output(spec),
        _weights(card),
        _use(card, spec),
        _training(card),
        _lineage(card),
    )
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _dump(record: Mapping[str, Any]) -> str:
    """Return YAML with letters as they are, escaped only where they would read back otherwise (U+0085 ends a line)."""
    plain = yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=1000)
    return plain if yaml.safe_load(plain) == record else yaml.safe_dump(record, sort_keys=False, width=1000)


def front_matter(card: Card) -> dict[str, Any]:
    """Return the metadata the Hub reads, without keys that have nothing to say."""
    base = str(card.base["public_id"])
    on_hub = not base.startswith("local/")
    front: dict[str, Any] = {}
    if on_hub:  # The Hub refuses a base_model it cannot look up.
        front |= {"base_model": base, "base_model_relation": "adapter"}
    front["library_name"] = "peft"
    front["pipeline_tag"] = pipeline_tag(card)
    feature = ["feature-extraction"] if card.kind == "embedding" else []
    on_base = [f"base_model:adapter:{base}"] if on_hub else []
    front["tags"] = [*on_base, "lora", "transformers", "adapterhub", *feature]
    front |= {key: list(values) for key, values in (("language", card.language), ("datasets", card.datasets)) if values}
    front |= _license(card.license)
    if card.metrics:
        front["model-index"] = [{"name": card.task, "results": [_result(card)]}]
    return front


def pipeline_tag(card: Card) -> str:
    """Return the Hub's name for what the task does."""
    return _PIPELINE_TAGS.get(card.kind, "text-classification")


def _license(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    if _LICENSE.fullmatch(name.lower()):
        return {"license": name.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "other"}


def _result(card: Card) -> dict[str, Any]:
    dataset: dict[str, Any] = {"name": card.datasets[0] if card.datasets else f"{card.task} held-out data"}
    dataset["type"] = card.datasets[0] if card.datasets else "custom"
    if card.measured_on is not None:
        dataset["split"] = card.measured_on
    metrics = []
    for name, metric in card.metrics.items():
        kind, title = _METRICS.get(name, (name, name))
        metrics.append({"type": kind, "value": metric["value"], "name": title})
    return {"task": {"type": pipeline_tag(card)}, "dataset": dataset, "metrics": metrics}


def _about(card: Card) -> str:
    lines = [f"# {_text(card.task)}", ""]
    if card.description:
        lines += [card.description.strip(), ""]
    lines += [f"A LoRA adapter that {_JOBS.get(card.kind, 'does one task')}, on a frozen base model."]
    if card.labels:
        lines += ["", f"Labels, in the order of the logits: {', '.join(_code(label) for label in card.labels)}."]
    return "\n".join(lines)


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    split = card.data.get(card.measured_on or "", {})
    rows = f" ({split['rows']} rows)" if "rows" in split else ""
    where = f"the {card.measured_on} split{rows}" if card.measured_on else "held-out data"
    lines = [
        f"## Metrics\n\nMeasured on {where}, with 95% intervals.\n",
        "| metric | value | low | high |",
        "|---|---|---|---|",
    ]
    for name, metric in card.metrics.items():
        numbers = " | ".join(f"{metric[key]:.4f}" for key in ("value", "low", "high"))
        lines.append(f"| {_text(_METRICS.get(name, (name, name))[1])} | {numbers} |")
    return "\n".join(lines)


def _calibration(card: Card, spec: TaskSpec) -> str:
    """Say what becomes of the logits; nothing where they are taken as they are, and the card says nothing of it."""
    said = spec.calibration
    lines = []
    if said is not None:
        lines.append(f"Logits are divided by a temperature of {said.temperature:g} before they become probabilities.")
        if said.reject_below is not None:
            lines.append(f"A text whose likeliest label has a probability below {said.reject_below:g} gets no label.")
    reasons = [(key, card.calibration.get(f"{key}_reason")) for key in ("temperature", "reject_below")]
    lines += [f"{_code(key)}: {_text(why)}." for key, why in reasons if why]
    return "\n\n".join(["## Calibration", *lines]) if lines else ""


def _output(spec: TaskSpec) -> str:
    """Say what every answer looks like, and who sees to it; nothing where any text will do."""
    if spec.output is None:
        return ""
    what = {"json_schema": "keeps this JSON schema", "choices": "is one of these", "regex": "matches this as a whole"}
    rule = "\n".join(f"    {line}" for line in spec.output.rule.splitlines())
    return (
        f"## Answers\n\nEvery answer {what[spec.output.kind]}:\n\n{rule}\n\nadapterhub sees to that when it serves; "
        "whatever else loads the adapter has to see to it itself."
    )


def _weights(card: Card) -> str:
    base = card.base
    name, public_id = str(base["name"]), str(base["public_id"])
    lines = [
        "## Trained on",
        "",
        f"Base {_code(name)}, whose weights have the fingerprint {_code(base['fingerprint'])}.",
    ]
    if base.get("derived_from"):
        lines.append(
            f"Where they come from: {_code(base['derived_from'])}. On weights with another fingerprint the answers "
            "differ a little, and so may the metrics."
        )
    if public_id.startswith("local/"):
        lines.append(
            "That base is a folder of its maker's and has no public home; the adapter needs exactly those weights."
        )
    else:
        lines.append(f"{_code(f'adapterhub base pull {_pinned(base)}')} gets exactly those weights.")
    return "\n".join(lines)


def _pinned(base: Mapping[str, Any]) -> str:
    """Return the name to pull the base by: a Hub id at the commit it was, since a repository changes; else as it is."""
    name, revision = str(base["name"]), base.get("revision")
    repo_id = name.partition("@")[0]
    return f"{repo_id}@{revision}" if revision and repo_id == base["public_id"] else name


def _use(card: Card, spec: TaskSpec) -> str:
    text = "An example prompt" if spec.kind == "generation" else "An example text"
    ours = f'adapterhub pull ORG/NAME --as {card.task}\nadapterhub predict {card.task} "{text}"'
    return (
        "## Use\n\nWith adapterhub, which serves many such adapters on one base at once:\n\n"
        f"```sh\n{ours}\n```\n\n"
        "With plain PEFT, where `folder` is a downloaded copy of this one or the name of its Hub repository:\n\n"
        f"```python\n{peft_snippet(card, spec)}```" + _vllm(card, spec)
    )


def _vllm(card: Card, spec: TaskSpec) -> str:
    command = vllm_command(card, spec)
    if command is None:
        return ""
    name, public_id = str(card.base["name"]), str(card.base["public_id"])
    if public_id.startswith("local/"):
        where = "that base's folder"
    elif card.base.get("derived_from"):
        where = f"the folder that {_code(f'adapterhub base pull {name}')} names"
    else:
        where = _code(public_id)
    return f"\n\nWith vLLM, where `BASE` is {where}:\n\n```sh\n{command}\n```"


def _training(card: Card) -> str:
    rows = [*_training_rows(card)]
    if not rows:
        return ""
    return "\n".join(["## Training", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _lineage(card: Card) -> str:
    """Say what the version was made from, by hash."""
    rows = [("made from", _code(parent)) for parent in card.parents]
    source = card.extra.get("source")
    if isinstance(source, Mapping):
        rows.append(("taken from", ", ".join(f"{_text(key)} {_code(value)}" for key, value in source.items())))
    rows += [
        (f"{_text(split)} rows", _code(f"sha256:{part['sha256']}"))
        for split, part in card.data.items()
        if part.get("sha256")
    ]
    # A card may be a stranger's: what is not as ours write it is left out.
    model = card.labelling.get("label_model")
    if isinstance(model, Mapping) and isinstance(card.labelling.get("voters"), Mapping):
        voters = ", ".join(_code(name) for name in card.labelling["voters"])
        rows.append(("labels", f"by {_code(model.get('model', '?'))} from {voters}"))
    if "kept" in card.curation and "dropped" in card.curation:
        kept, dropped, by = (card.curation.get(name) for name in ("kept", "dropped", "metric"))
        rows.append(("curated", f"{_text(kept)} rows kept by {_code(by)}, {_text(dropped)} left out"))
    if card.git_commit:
        rows.append(("commit", _code(card.git_commit)))
    rows.append(("digest", _code(card.digest)))
    return "\n".join(["## Lineage", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _training_rows(card: Card) -> Iterator[tuple[str, str]]:
    for split, part in card.data.items():
        yield f"{_text(split)} data", f"{_code(part.get('name', ''))}, {part.get('rows', '?')} rows"
    for key in ("lora", "training"):
        if card.recipe.get(key):
            said = {name: value for name, value in card.recipe[key].items() if value is not None}
            yield key, _code(json.dumps(said, sort_keys=True, ensure_ascii=False, default=str))
    for key, value in card.training.items():
        if key != "history":  # a page is no place for every evaluation; card.json has them
            yield _text(key.replace("_", " ")), _code(_short(value))
    if card.packages:
        yield "packages", _code(", ".join(f"{name} {version}" for name, version in card.packages.items()))


def _short(value: Any) -> Any:
    """Return what people want to read of a value: four digits of a fraction, a record as its parts."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else value


def _text(value: Any) -> str:
    """Return `value` as one line that Markdown and a table leave alone."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _code(value: Any) -> str:
    """Return `value` as inline code on one line, whatever it holds."""
    line = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"
