"""How a version is loaded in plain PEFT and in vLLM, for the model card."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping

from adapterhub.data.task import TaskSpec

from .card import Card

_CLASSIFY = """\
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = {base}
folder = "ORG/NAME"
labels = {labels}

tokenizer = AutoTokenizer.from_pretrained(base){pad}
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
model.config.pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(model, folder).eval()

inputs = tokenizer({text}, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0]
{answer}
"""
_GENERATE = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base}
folder = "ORG/NAME"

tokenizer = AutoTokenizer.from_pretrained(base){pad}
model = AutoModelForCausalLM.from_pretrained(base)
model = PeftModel.from_pretrained(model, folder).eval()

{inputs}
with torch.no_grad():
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_EMBED = """\
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

base = {base}
folder = "ORG/NAME"

tokenizer = AutoTokenizer.from_pretrained(base){pad}
model = AutoModel.from_pretrained(base)
model = PeftModel.from_pretrained(model, folder).eval()

inputs = tokenizer({text}, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs).last_hidden_state[0]
vector = torch.nn.functional.normalize({pooled}, dim=0)
print(vector.shape)
"""
# What --max-lora-rank takes, from its default on.
_VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)
_POOLED = {"mean": "states.mean(0)", "last": "states[-1]", "cls": "states[0]"}
_ANSWERS = {
    "classification": "print(labels[logits.argmax()])",
    "multilabel": "print([label for label, p in zip(labels, logits.sigmoid()) if p >= 0.5])",
}


def peft_snippet(card: Card, spec: TaskSpec) -> str:
    """Return a program that answers one text with this adapter, once `base` and `folder` are the reader's own."""
    base = str(card.base["public_id"])
    common: Mapping[str, str] = {
        "base": _quote(base),
        "pad": "" if spec.pad_token is None else f"\ntokenizer.pad_token = {_quote(spec.pad_token)}",
    }
    if spec.kind == "generation":
        return _GENERATE.format(**common, inputs=_prompt(spec))
    if spec.kind == "embedding":
        return _EMBED.format(**common, text=_text(spec, "text"), pooled=_POOLED[spec.pooling or "mean"])
    labels = json.dumps(list(spec.labels), ensure_ascii=False)
    return _CLASSIFY.format(**common, labels=labels, text=_text(spec, "text"), answer=_answer(spec))


def vllm_command(card: Card, spec: TaskSpec) -> str | None:
    """Return the command that has vLLM serve this adapter on `BASE`; None where vLLM does not take it.

    It loads LoRA for models that write, up to a rank that it is told (16 if it is not), and no DoRA.
    """
    lora = card.recipe.get("lora") or {}
    if spec.kind != "generation" or lora.get("variant") == "dora":
        return None
    ranks = [lora.get("rank", 0), *(lora.get("rank_pattern") or {}).values()]
    rank = max(ranks) * (2 if lora.get("init") == "pissa" else 1)
    fitting = next((each for each in _VLLM_RANKS if rank <= each), None)
    if fitting is None:
        return None
    most = "" if fitting <= _VLLM_RANKS[0] else f" --max-lora-rank {fitting}"
    return f"vllm serve BASE --enable-lora{most} --lora-modules {card.task}=ORG/NAME"


def _answer(spec: TaskSpec) -> str:
    """Return the last line: a temperature changes no label, but a task may be too unsure to give one."""
    if spec.calibration is None or spec.calibration.reject_below is None:
        return _ANSWERS[spec.kind]
    probs = f"probs = (logits / {spec.calibration.temperature!r}).softmax(-1)"
    return f"{probs}\nprint(labels[probs.argmax()] if probs.max() >= {spec.calibration.reject_below!r} else None)"


def _prompt(spec: TaskSpec) -> str:
    if spec.prompt.style == "plain":
        return f'inputs = tokenizer({_text(spec, "prompt")}, return_tensors="pt")'
    system = f'{{"role": "system", "content": {_quote(spec.prompt.system)}}}, ' if spec.prompt.system else ""
    return (
        f'messages = [{system}{{"role": "user", "content": {_text(spec, "prompt")}}}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
        ")"
    )


def _text(spec: TaskSpec, field: str) -> str:
    """Return the expression for an input: an example text, through the template where the task has one."""
    template = spec.prompt.template
    if template is None:
        return _quote(f"An example {field}")
    names = dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name)
    # As a mapping: a field may be called `class` or `order-id`, which no keyword argument can.
    values = ", ".join(f"{_quote(name)}: {_quote(f'an example {name}')}" for name in names)
    return f"{_quote(template)}.format(**{{{values}}})"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
