"""The lean decoder against the general network, for every family it takes and every trait they have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from adapterhub.base.llama import weights_of
from adapterhub.engine.decoder import LeanDecoder
from adapterhub.engine.request import Adapter
from adapterhub.engine.runner import Runner
from adapterhub.lora.slabs import LoraSlabs
from adapterhub.lora.weights import LoraPair, LoraWeights
from tests.tiny import LLAMA3, tiny_config

from .direct import Direct

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "one key/value head": ("llama", {"num_key_value_heads": 1}),
    "no grouped queries": ("llama", {"num_key_value_heads": 4}),
    "tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "a head size of its own": ("llama", {"head_dim": 16}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "rope llama3": ("llama", {"rope_parameters": LLAMA3}),
    "rope yarn": ("llama", {"rope_parameters": YARN}),
    "rope linear": ("llama", {"rope_parameters": LINEAR}),
    "mistral": ("mistral", {}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
}
PROMPTS = [[5, 6, 7, 8, 9], [40, 41], list(range(3, 40)), [7] * 30]


def model_of(family: str, changes: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    if family == "qwen3":
        llama = tiny_config("llama", **changes).to_dict()
        config: Any = Qwen3Config(
            **{k: v for k, v in llama.items() if k not in {"model_type", "architectures", "mlp_bias"}}
        )
    else:
        config = tiny_config(family, **changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.5 if "emb" in name else 0.15)
    return model.to(dtype)


def adapters_of(model: Any) -> list[Adapter | None]:
    """Adapters of several ranks and targets, and the bare base."""
    generator = torch.Generator().manual_seed(1)
    shapes = {n: m.weight.shape for n, m in model.base_model.named_modules() if isinstance(m, torch.nn.Linear)}
    chosen = [
        (4, ("q_proj", "v_proj")),
        (1, ("down_proj", "k_proj")),
        (8, ("_proj",)),
        (4, ("layers.1.", "o_proj")),
        (2, ("_proj",)),
    ]
    found: list[Adapter | None] = [None]
    for i, (rank, parts) in enumerate(chosen):
        pairs = {
            name: LoraPair(
                torch.randn(rank, shape[1], generator=generator, dtype=torch.float64) * 0.3,
                torch.randn(shape[0], rank, generator=generator, dtype=torch.float64) * 0.3,
                0.7,
            )
            for name, shape in shapes.items()
            if any(part in name for part in parts)
        }
        if i == 4:  # DoRA; magnitudes near the frozen norms, as training leaves them
            drawn = {n: torch.rand(p.b.shape[0], generator=generator, dtype=torch.float64) for n, p in pairs.items()}
            pairs = {n: replace(p, magnitude=0.5 + drawn[n]) for n, p in pairs.items()}
        weights = LoraWeights(pairs, {}).to(model.dtype)
        found.append(Adapter(f"sha256:{i}", lambda weights=weights: weights))
    return found


def run(runner: Runner, adapters: list[Adapter | None], chunk: int | None) -> Tensor:
    """Logits of each step of a mixed batch whose rows get given tokens: prompt, three steps, one row leaves, three."""
    direct = Direct(runner)
    rows = [direct.row(PROMPTS[i % len(PROMPTS)], adapter) for i, adapter in enumerate(adapters)]
    found = direct.prefill(rows, chunk)
    for step in range(3):
        found += direct.decode(rows, [10 * step + i for i in range(len(rows))])
    direct.leave(rows.pop(1))
    for step in range(3):
        found += direct.decode(rows, [50 + 10 * step + i for i in range(len(rows))])
    return torch.stack(found)


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_general_network(case: str) -> None:
    family, changes = CASES[case]
    adapters = adapters_of(model_of(family, changes))
    reference = Runner(model_of(family, changes), reference=True)
    lean = Runner(model_of(family, changes))
    assert (lean.identity, reference.identity) == ("lean/float64", "transformers/float64")
    expected = run(reference, adapters, None)
    torch.testing.assert_close(run(lean, adapters, None), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(run(lean, adapters, 7), expected, rtol=0, atol=1e-9)
    assert len({round(float(row.sum()), 6) for row in expected}) == len(expected)


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "biases everywhere"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
def test_it_stays_close_in_the_precisions_people_run(case: str, dtype: torch.dtype, tolerance: float) -> None:
    family, changes = CASES[case]
    model = model_of(family, changes, dtype)
    adapters = adapters_of(model)
    expected = run(Runner(model_of(family, changes, dtype), reference=True), adapters, None).float()
    found = run(Runner(model), adapters, None).float()
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_a_base_without_adapters_computes_no_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(LoraSlabs, "add")
    model = model_of("llama", {})
    ids = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0, -1]
    runner = Runner(model)
    direct = Direct(runner)
    (found,) = direct.prefill([direct.row(PROMPTS[2])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_models_own_weights_are_let_go() -> None:
    model = model_of("llama", {})
    before = sum(parameter.numel() for parameter in model.parameters())
    LeanDecoder(weights_of(model), 1)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert left < before / 3
    assert left >= model.get_input_embeddings().weight.numel()


@pytest.mark.parametrize(
    ("family", "changes"),
    [("gpt2", {}), ("llama", {"rope_parameters": DYNAMIC})],
    ids=["another family", "dynamic rope"],
)
def test_what_it_cannot_compute_goes_to_the_general_network(family: str, changes: dict[str, Any]) -> None:
    assert Runner(model_of(family, changes)).identity == "transformers/float64"


def test_a_kin_that_computes_something_else_goes_to_the_general_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama", {})
    prompt = PROMPTS[0]
    original = LlamaForCausalLM.forward
    for layer in model.base_model.layers:
        layer.mlp.register_forward_hook(lambda _module, _given, output: output * 1.5)
    with torch.inference_mode():
        expected = original(model, input_ids=torch.tensor([prompt])).logits[0, -1]
    runner = Runner(model)
    assert runner.identity == "transformers/float64"
    direct = Direct(runner)
    (found,) = direct.prefill([direct.row(prompt)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_dropping_an_adapter_gives_back_the_base() -> None:
    model = model_of("llama", {})
    adapter = adapters_of(model)[3]
    assert adapter is not None
    runner = Runner(model)
    direct = Direct(runner)
    (bare,) = direct.prefill([direct.row(PROMPTS[0])])
    (adapted,) = direct.prefill([direct.row(PROMPTS[0], adapter)])
    assert float((bare - adapted).abs().max()) > 0.1
    runner.unload(0)
    runner.unload(0)
    (again,) = direct.prefill([direct.row(PROMPTS[0], adapter)])  # its slot is empty now
    torch.testing.assert_close(again, bare, rtol=0, atol=0)
