"""Python that loads a version in plain PEFT, for the model card."""

from __future__ import annotations

from ..data.task import TaskSpec
from .card import Card

_CLASSIFY = """\
import json
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = {base!r}
folder = "ORG/NAME"
labels = json.loads({labels!r})

tokenizer = AutoTokenizer.from_pretrained(base)
{pad}model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels){problem})
model.config.pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(model, folder).eval()

inputs = tokenizer("A text to classify", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0]
{answer}
"""
_GENERATE = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base!r}
folder = "ORG/NAME"

tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base)
model = PeftModel.from_pretrained(model, folder).eval()

{prompt}
with torch.no_grad():
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
_ONE = "print(labels[logits.argmax()])"
_MANY = "print([label for label, p in zip(labels, logits.sigmoid()) if p > 0.5])"
_CHAT = """\
messages = [{system}{{"role": "user", "content": "A prompt"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
_PLAIN = 'inputs = tokenizer("A prompt", return_tensors="pt")'


def peft_snippet(card: Card, spec: TaskSpec) -> str:
    """Return a program that answers one text with this adapter, given the right `base` and `folder`."""
    base = str(card.base["public_id"]).removeprefix("local/")
    if card.kind == "generation":
        return _GENERATE.format(base=base, prompt=_prompt(spec))
    return ""


def _prompt(spec: TaskSpec) -> str:
    return ""
