"""A base nobody has seen before, of any family, given by its path: trained on, published, served, held against PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.base.source import open_base
from adapterhub.pipeline.build import build
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.runtime.target import GenerationRequest
from tests.adapters import load_peft
from tests.pipeline.toys import write_recipe, write_rows
from tests.server.running import running
from tests.tiny import byte_tokenizer, make_tiny_base
from tests.training.jobs import Recorder, toy_rows

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
FAMILIES = ("qwen2", "mistral", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_publishes_and_serves(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    base_folder = make_tiny_base(tmp_path / "base", family)
    for split, count, seed in (("train", 80, 0), ("validation", 20, 1), ("test", 30, 2)):
        write_rows(tmp_path / f"{split}.jsonl", [dict(row.fields) for row in toy_rows(count, seed)])
        written = [{"prompt": row.text, "completion": str(row.label)} for row in toy_rows(count, seed)]
        write_rows(tmp_path / f"written-{split}.jsonl", written)
    registry = Registry(tmp_path / "registry")
    labelled = build(load_recipe(write_recipe(tmp_path, "colours")), registry, Recorder())
    written_data = {split: f"written-{split}.jsonl" for split in ("train", "validation", "test")}
    recipe = write_recipe(tmp_path, "writer", kind="generation", data=written_data)
    build(load_recipe(recipe), registry, Recorder())

    base = open_base(str(base_folder))
    text = toy_rows(1, seed=5)[0].text
    with AdapterHub(base, registry) as hub:
        (answer,) = hub.predict("colours", [text])
        ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
        plain = load_peft(base_folder, labelled.published.path, 2)
        with torch.inference_mode():
            expected = plain(input_ids=ids).logits[0].softmax(-1).tolist()
        assert list((answer.probs or {}).values()) == pytest.approx(expected, abs=1e-4)

        request = GenerationRequest(text="abc", max_tokens=10, temperature=0, ignore_eos=True)
        tuned = hub.generate(hub.target("writer"), request).result().token_ids
        bare = hub.generate(hub.target(base.name), request).result().token_ids
        assert tuned == greedy(load_peft(base_folder, registry.resolve("writer").path, None), "abc", 10)
        assert tuned != bare
        with running(hub) as server, server.openai() as client:
            names = {model.id for model in client.models.list()}
            assert {base.name, "colours", "writer@1"} <= names
            said = client.completions.create(
                model="writer", prompt="abc", max_tokens=10, temperature=0, extra_body={"ignore_eos": True}
            )
            assert said.choices[0].text == hub.generate(hub.target("writer"), request).result().text
    assert labelled.metrics["accuracy"].value > 0.8


def greedy(model: torch.nn.Module, text: str, count: int) -> tuple[int, ...]:
    ids = list(byte_tokenizer()(text)["input_ids"])
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[-count:])
