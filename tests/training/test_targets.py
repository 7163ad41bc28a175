from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adapterhub.errors import ConfigError
from adapterhub.training.targets import Modules, choose_layers, choose_targets
from tests.tiny import FAMILIES, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # asked by PEFT
HEADS = ("lm_head", "score", "classifier")


def network(family: str, *, causal: bool = False) -> Any:
    config = tiny_config(family)
    config.num_labels = 3
    return (AutoModelForCausalLM if causal else AutoModelForSequenceClassification).from_config(config)


def adapted(model: Any, targets: Any) -> list[str]:
    """Return the names of the modules that PEFT puts matrices on for these targets."""
    config = LoraConfig(
        r=2,
        target_modules=list(targets.names),
        layers_to_transform=None if targets.layers is None else list(targets.layers),
        fan_in_fan_out=targets.fan_in_fan_out,
    )
    prefix = "base_model.model."
    modules = get_peft_model(model, config).named_modules()
    return [name.removeprefix(prefix) for name, module in modules if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("causal", [False, True])
def test_all_linear_is_every_linear_module_of_the_layers_and_no_other(family: str, causal: bool) -> None:
    if family == "bert" and causal:
        pytest.skip("an encoder does not write")
    model = network(family, causal=causal)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    inside = {id(m) for layer in layers for m in layer.modules()}
    expected = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and type(module).__name__ in ("Linear", "Conv1D")
    ]
    assert len(expected) >= 12
    assert adapted(model, choose_targets(Modules.of(model, HEADS), "all-linear", "all")) == expected


def test_names_are_short_where_that_is_unambiguous() -> None:
    llama = choose_targets(Modules.of(network("llama"), HEADS), "all-linear", "all")
    assert llama.names == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert llama.layers == (0, 1, 2)
    assert not llama.fan_in_fan_out
    # "dense" would name the pooler too.
    bert = choose_targets(Modules.of(network("bert"), HEADS), "all-linear", "all")
    assert bert.names == ("intermediate.dense", "key", "output.dense", "query", "value")
    # "c_proj" is both of attention and of the feed-forward part, and both are wanted.
    gpt2 = choose_targets(Modules.of(network("gpt2"), HEADS), "all-linear", "all")
    assert gpt2.names == ("c_attn", "c_fc", "c_proj")
    assert gpt2.fan_in_fan_out


def test_a_user_may_name_modules_short_or_long() -> None:
    model = network("bert")
    long = choose_targets(Modules.of(model, HEADS), ["attention.output.dense", "query"], "all")
    assert long.names == ("attention.output.dense", "query")
    assert len(adapted(model, long)) == 6
    assert choose_targets(Modules.of(network("llama"), HEADS), ["self_attn.q_proj"], "all").names == ("q_proj",)
    both = choose_targets(Modules.of(network("bert"), HEADS), ["dense"], "all")
    assert both.names == ("intermediate.dense", "output.dense")
    one = choose_targets(Modules.of(network("gpt2"), HEADS), ["mlp.c_proj"], "all")
    assert one.names == ("mlp.c_proj",)


def test_a_target_that_matches_nothing_is_refused_with_what_exists() -> None:
    for wrong in ("query_proj", "proj", "lm_head", "score", "self_attn", "embed_tokens"):
        with pytest.raises(ConfigError, match=rf"lora\.targets: '{wrong}'.*self_attn\.q_proj"):
            choose_targets(Modules.of(network("llama"), HEADS), ["q_proj", wrong], "all")


def test_layers_are_all_the_top_ones_or_a_list() -> None:
    assert choose_layers("all", 30) == tuple(range(30))
    assert choose_layers("top-8", 30) == tuple(range(22, 30))
    assert choose_layers([3, 1, 3], 30) == (1, 3)
    # The same adapter has one name, however it was asked for.
    assert choose_layers("top-3", 3) == choose_layers([2, 1, 0], 3) == choose_layers("all", 3)


@pytest.mark.parametrize("asked", ["top-4", "top-0", [3], [-1], []])
def test_layers_the_base_does_not_have_are_refused(asked: Any) -> None:
    with pytest.raises(ConfigError, match=r"lora\.layers: .*(3 layers|0 to 2)"):
        choose_layers(asked, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapts_the_asked_layers_only(family: str) -> None:
    model = network(family)
    names = adapted(model, choose_targets(Modules.of(model, HEADS), "all-linear", "top-1"))
    assert names
    assert {next(part for part in name.split(".") if part.isdigit()) for name in names} == {"2"}
