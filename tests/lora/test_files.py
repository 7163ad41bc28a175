"""Adapter folders in and out, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.errors import AdapterError, CorruptAdapter, FileMissing, UnsafeAdapter
from adapterhub.lora.config import AdapterConfig, parse_config, read_config
from adapterhub.lora.files import PREFIX, read_adapter, read_tensors, write_adapter
from adapterhub.lora.weights import check_effect, lora_scaling
from tests.adapters import load_peft, load_plain, make_adapter
from tests.tiny import make_tiny_base

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"), "llama")


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_wrote_means_the_same_after_rewriting(base: Path, tmp_path: Path, rslora: bool) -> None:
    theirs = make_adapter(base, tmp_path / "theirs", "llama", labels=3, rank=8, rslora=rslora, layers=[0, 2])
    config = read_config(theirs)
    ours = tmp_path / "ours"
    write_adapter(ours, AdapterConfig(**{**vars(config), "base_model": "org/tiny"}), read_tensors(theirs))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        before = load_peft(base, theirs, 3)(input_ids=ids).logits
        after = load_peft(base, ours, 3)(input_ids=ids).logits
        assert torch.equal(before, after)
        assert not torch.equal(before, load_plain(base, 3)(input_ids=ids).logits)
    assert json.loads((ours / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def test_equal_content_has_equal_bytes(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    config, tensors = read_config(folder), read_tensors(folder)
    for name, order in (("one", list(tensors)), ("two", list(reversed(tensors)))):
        shuffled = AdapterConfig(**{**vars(config), "targets": tuple(order_of(config.targets, name))})
        write_adapter(tmp_path / name, shuffled, {key: tensors[key] for key in order})
    for file in ("adapter_config.json", WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "peft_version" not in (tmp_path / "one" / "adapter_config.json").read_text()


def order_of(targets: tuple[str, ...], name: str) -> list[str]:
    return sorted(targets, reverse=name == "two")


def test_an_adapter_of_the_backbone_alone_names_its_modules_alike(base: Path, tmp_path: Path) -> None:
    bare = read_adapter(make_adapter(base, tmp_path / "bare", "llama", vectors=True))
    causal = read_adapter(make_adapter(base, tmp_path / "causal", "llama"))
    assert bare.modules.keys() == causal.modules.keys()
    assert not bare.head
    folder = tmp_path / "bare"
    tensors = read_tensors(folder)
    save_file({**tensors, f"{PREFIX}score.weight": torch.ones(2, 32)}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CorruptAdapter, match="FEATURE_EXTRACTION adapter cannot carry a head"):
        read_adapter(folder)


def test_delta_is_what_peft_merges(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama", rank=4, rslora=True)
    merged = load_peft(base, folder, None).merge_and_unload()
    plain = load_plain(base, None)
    for name, pair in read_adapter(folder).modules.items():
        before = plain.base_model.get_submodule(name).weight
        after = merged.base_model.get_submodule(name).weight
        torch.testing.assert_close(after - before, pair.delta(), rtol=1e-4, atol=1e-5)


def test_alpha_pattern_follows_peft(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama", rank=4, targets=["q_proj", "v_proj"])
    change_config(folder, alpha_pattern={"layers.1.self_attn.q_proj": 40, "v_proj": 12})
    modules = read_adapter(folder).modules
    peft = load_peft(base, folder, None)
    for name, pair in modules.items():
        theirs = peft.base_model.model.base_model.get_submodule(name)
        assert pair.scaling == pytest.approx(theirs.scaling["default"])
    assert {pair.scaling for pair in modules.values()} == {2.0, 10.0, 3.0}


def test_scaling() -> None:
    assert lora_scaling(16, 8, rslora=False) == 2.0
    assert lora_scaling(16, 16, rslora=True) == 4.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(base: Path, tmp_path: Path, value: float) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    tensors = read_tensors(folder)
    name = min(tensors)
    tensors[name][0, 0] = value
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CorruptAdapter, match="NaN or infinite"):
        read_adapter(folder)


def test_pickle_and_links_are_refused(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    (linked / WEIGHTS).symlink_to(folder / WEIGHTS)
    with pytest.raises(UnsafeAdapter, match="symbolic link"):
        read_adapter(linked)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UnsafeAdapter, match="pickle"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileMissing, match=WEIGHTS):
        read_adapter(folder)


def test_truncated_weights_and_odd_keys_are_refused(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    tensors = read_tensors(folder)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptAdapter, match="not a safetensors file"):
        read_adapter(folder)
    save_file({**tensors, "base_model.model.model.embed_tokens.weight": torch.ones(2, 2)}, folder / WEIGHTS)
    with pytest.raises(CorruptAdapter, match="neither a LoRA matrix"):
        read_adapter(folder)
    half = sorted(tensors)[1:]
    save_file({name: tensors[name] for name in half}, folder / WEIGHTS)
    with pytest.raises(CorruptAdapter, match="both lora_A and lora_B"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"layer_replication": [[0, 1]]}, AdapterError, "layer_replication"),
        ({"lora_bias": True}, AdapterError, "lora_bias"),
        ({"bias": "all"}, AdapterError, "bias"),
        ({"init_lora_weights": "pissa"}, AdapterError, "pissa"),
        ({"some_future_variant": {"a": 1}}, AdapterError, "some_future_variant"),
        ({"peft_type": "IA3"}, AdapterError, "IA3"),
        ({"task_type": "SEQ_2_SEQ_LM"}, AdapterError, "SEQ_2_SEQ_LM"),
        ({"r": "many"}, CorruptAdapter, "not a LoRA configuration"),
        ({"alpha_pattern": {"(": 4}}, CorruptAdapter, "not a LoRA configuration"),
        ({"alpha_pattern": {"q_proj": "much"}}, CorruptAdapter, "not a LoRA configuration"),
    ],
)
def test_variants_that_would_not_be_exact_are_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    change_config(folder, **changes)
    with pytest.raises(error, match=words):
        read_config(folder)


def test_a_file_changed_after_reading_does_not_change_what_was_read(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    tensors = read_tensors(folder)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    (folder / WEIGHTS).write_bytes(b"")
    assert all(torch.equal(tensors[name], copies[name]) for name in copies)


def test_an_adapter_without_effect_is_refused(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama", scale=0.0)
    with pytest.raises(CorruptAdapter, match="changes nothing"):
        check_effect(read_adapter(folder))
    check_effect(read_adapter(make_adapter(base, tmp_path / "b", "llama")))


def test_magnitudes_and_what_the_configuration_says_of_them_must_agree(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama", dora=True)
    pairs = read_adapter(folder).modules
    assert all(pair.magnitude is not None and pair.magnitude.shape == pair.b.shape[:1] for pair in pairs.values())
    assert parse_config(json.loads(read_config(folder).to_json())).dora
    change_config(folder, use_dora=False)
    with pytest.raises(CorruptAdapter, match="use_dora = False"):
        read_adapter(folder)
    plain = change_config(make_adapter(base, tmp_path / "b", "llama"), use_dora=True)
    with pytest.raises(CorruptAdapter, match="no lora_magnitude_vector"):
        read_adapter(plain)
    change_config(folder, use_dora=True)
    tensors = read_tensors(folder)
    name = next(name for name in tensors if name.endswith("magnitude_vector"))
    save_file({**tensors, name: torch.ones(3)}, folder / WEIGHTS)
    with pytest.raises(CorruptAdapter, match="magnitude_vector"):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["{root}.{rest}", "{key}\n"])
def test_a_second_tensor_for_a_place_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    tensors = read_tensors(folder)
    key = min(tensors)
    rest = key.removeprefix(PREFIX).partition(".")[2]
    tensors[name.format(root=f"{PREFIX}zzz", rest=rest, key=key)] = torch.ones_like(tensors[key])
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CorruptAdapter, match=r"another tensor has already|neither a LoRA matrix"):
        read_adapter(folder)


def test_a_name_that_ends_in_a_line_break_is_no_head(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama", labels=3)
    tensors = read_tensors(folder)
    tensors[f"{PREFIX}score.weight\n"] = tensors.pop(f"{PREFIX}score.weight")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CorruptAdapter, match="neither a LoRA matrix"):
        read_adapter(folder)


@pytest.mark.parametrize("changes", [{"r": math.inf}, {"r": -math.inf}, {"r": math.nan}])
def test_numbers_that_are_none_are_no_configuration(base: Path, tmp_path: Path, changes: dict[str, float]) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    change_config(folder, **changes)
    with pytest.raises(CorruptAdapter, match="not a LoRA configuration"):
        read_config(folder)


def test_brackets_without_end_are_no_configuration(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "a", "llama")
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(CorruptAdapter, match="not JSON"):
        read_config(folder)
