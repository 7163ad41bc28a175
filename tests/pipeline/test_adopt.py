"""Import: a PEFT folder made elsewhere gives the same answers here, or is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapterhub.base.catalog import CATALOG
from adapterhub.base.source import open_base
from adapterhub.data.task import Calibration
from adapterhub.errors import (
    AdapterError,
    BaseError,
    BaseMismatch,
    BaseNotFound,
    CorruptAdapter,
    FileMissing,
    NameTaken,
    UnsafeAdapter,
    UsageError,
)
from adapterhub.pipeline.adopt import Request, adopt
from adapterhub.pipeline.share import pull
from adapterhub.registry.bundle import digest_folder
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published
from adapterhub.runtime.hub import AdapterHub
from tests.adapters import load_peft, load_plain
from tests.pipeline.strangers import (
    CONFIG,
    WEIGHTS,
    change_config,
    change_tensors,
    make_stranger,
    peft_logits,
    plain_logits,
)
from tests.tiny import byte_tokenizer, make_tiny_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return one tiny base a family, made when first asked for."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny_base(root / family, family)
        return made[family]

    return get


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    return Registry(tmp_path / "registry")


def take(folder: Path, registry: Registry, base: Path | None, **request: Any) -> Published:
    return adopt(folder, registry, Request("tone", base=None if base is None else str(base), **request))


ANSWERED = {
    "names": ("llama", None, {}),
    "regex": ("llama", None, {"target_modules": r".*layers\.(0|2)\.self_attn\.(q|o)_proj"}),
    "all-linear": ("llama", None, {"target_modules": "all-linear"}),
    "layers": ("llama", 3, {"layers_to_transform": [0, 2]}),
    "one layer": ("llama", 3, {"layers_to_transform": 1, "layers_pattern": "layers"}),
    "no product": ("llama", None, {"target_modules": ["layers.0.self_attn.q_proj", "layers.2.mlp.up_proj"]}),
    "exclusion": ("llama", None, {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "ranks": ("llama", 2, {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 8}}),
    "alphas": ("llama", None, {"alpha_pattern": {r"^model.layers.1.self_attn.q_proj": 64, "v_proj": 3}}),
    "both patterns": ("mistral", None, {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 5}}),
    "rslora": ("qwen2", 3, {"use_rslora": True, "r": 16}),
    "dora": ("llama", None, {"use_dora": True}),
    "dora classifier": ("gpt2", 3, {"use_dora": True, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "dropout": ("llama", None, {"lora_dropout": 0.1}),
    "gpt2": ("gpt2", None, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2 classifier": ("gpt2", 4, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "bert": ("bert", 3, {"target_modules": ["query", "dense"]}),
    "bert one dense": ("bert", 3, {"target_modules": ["attention.output.dense"], "layers_to_transform": [1]}),
    "head named": ("llama", 3, {"modules_to_save": ["score"]}),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_plain_peft_gives_the_same_logits_before_and_after(
    name: str, bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    family, labels, lora = ANSWERED[name]
    base = bases(family)
    folder = make_stranger(base, tmp_path / "theirs", labels=labels, **lora)
    published = take(folder, registry, base)
    before, after = peft_logits(base, folder, labels), peft_logits(base, published.path, labels)
    assert torch.equal(before, after)
    if labels is None:
        assert not torch.allclose(after, plain_logits(base))
    config = json.loads((published.path / CONFIG).read_text())
    assert isinstance(config["target_modules"], list)
    stored = sorted(
        {int(name) for key in load_file(published.path / WEIGHTS) for name in key.split(".") if name.isdigit()}
    )
    # A pooler has no number, and PEFT would leave it out if layers were listed.
    assert config["layers_to_transform"] == (None if "pooler.dense" in config["target_modules"] else stored)
    assert config["base_model_name_or_path"] == f"local/{family}"
    assert published.spec().kind == ("generation" if labels is None else "classification")
    assert registry.verify() == []


EMBEDDED = {
    "names": ("llama", {}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "regex": ("llama", {"target_modules": r"layers\.(0|2)\.self_attn\.(q|o)_proj"}),
    "layers": ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "ranks": ("llama", {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "bert": ("bert", {"target_modules": ["query", "attention.output.dense"], "layers_to_transform": [0, 2]}),
    "bert dense": ("bert", {"target_modules": ["dense"]}),
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_plain_peft_gives_the_same_states_before_and_after(
    name: str, bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    family, lora = EMBEDDED[name]
    base = bases(family)
    folder = make_stranger(base, tmp_path / "theirs", task_type="FEATURE_EXTRACTION", **lora)
    published = take(folder, registry, base)
    ids = torch.arange(3, 23)[None, :]
    models = [load_peft(base, each, None, vectors=True) for each in (folder, published.path)]
    with torch.no_grad():
        before, after = (model(input_ids=ids).last_hidden_state for model in models)
        assert torch.equal(before, after)
        assert not torch.allclose(after, load_plain(base, None, vectors=True)(input_ids=ids).last_hidden_state)
    spec = published.spec()
    assert (spec.kind, spec.pooling, spec.labels, spec.prompt.style) == ("embedding", "mean", (), "plain")
    with AdapterHub(open_base(str(base)), registry) as hub:
        (found,) = hub.embed("tone", ["where is it"])
    text = torch.tensor([byte_tokenizer()("where is it")["input_ids"]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(models[0](input_ids=text).last_hidden_state[0].mean(0), dim=0)
    torch.testing.assert_close(found.vector, expected, rtol=1e-4, atol=1e-5)
    # And on to another registry, as it is.
    again = adopt(published.path, Registry(tmp_path / "elsewhere"), Request("tone"))
    assert again.digest == published.digest


def test_the_engine_reads_the_scaling_that_peft_means(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    from adapterhub.lora.files import read_adapter

    patterns = {"rank_pattern": {"v_proj": 8}, "alpha_pattern": {r"^model.layers.1.self_attn.q_proj": 64, "v_proj": 4}}
    folder = make_stranger(bases("llama"), tmp_path / "theirs", **patterns)
    weights = read_adapter(take(folder, registry, bases("llama")).path)
    scalings = {name: (pair.rank, pair.scaling) for name, pair in weights.modules.items()}
    assert scalings["layers.0.self_attn.q_proj"] == (4, 2.0)
    assert scalings["layers.1.self_attn.q_proj"] == (4, 16.0)
    assert scalings["layers.1.self_attn.v_proj"] == (8, 0.5)


def test_configurations_that_mean_the_same_get_the_same_digest(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    base = bases("llama")
    make_stranger(base, tmp_path / "list")
    for name, targets in (("regex", r".*\.(q|v)_proj"), ("long", ["self_attn.v_proj", "q_proj", "absent"])):
        shutil.copytree(tmp_path / "list", tmp_path / name)
        change_config(tmp_path / name, target_modules=targets, peft_version="9.9", inference_mode=False)
    first, *others = [take(tmp_path / name, registry, base) for name in ("list", "regex", "long")]
    assert {other.digest for other in others} == {first.digest}
    assert [other.created for other in others] == [False, False]


def test_labels_come_from_the_option_else_a_config_else_numbers(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    base = bases("llama")
    folder = make_stranger(base, tmp_path / "theirs", labels=3)
    assert take(folder, registry, base).spec().labels == ("label_0", "label_1", "label_2")
    assert take(folder, registry, base, labels=["a", "b", "c"]).spec().labels == ("a", "b", "c")
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}}))
    assert take(folder, registry, base).spec().labels == ("x", "y", "z")
    change_config(folder, id2label={"0": "p", "1": "q", "2": "r"})
    assert take(folder, registry, base).spec().labels == ("p", "q", "r")
    change_config(folder, id2label=None)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}))
    assert take(folder, registry, base).spec().labels == ("label_0", "label_1", "label_2")
    for wrong in (["a"], ["a", "b", "b"], ["a", "b", ""]):
        with pytest.raises(UsageError, match="3 classes"):
            take(folder, registry, base, labels=wrong)


def test_a_config_beside_it_says_that_labels_are_independent(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    folder = make_stranger(bases("llama"), tmp_path / "theirs", labels=3)
    (folder / "config.json").write_text(json.dumps({"problem_type": "multi_label_classification"}))
    assert take(folder, registry, bases("llama")).spec().kind == "multilabel"


def test_a_generation_adapter_gets_the_chat_template_of_its_base(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    folder = make_stranger(bases("llama"), tmp_path / "theirs")
    spec = take(folder, registry, bases("llama")).spec()
    assert spec.prompt.style == "chat"
    assert spec.prompt.chat_template is not None
    assert spec.max_length == 512
    with pytest.raises(UsageError, match="no labels"):
        take(folder, registry, bases("llama"), labels=["a"])


def test_the_card_says_where_it_came_from_and_nothing_of_this_machine(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    folder = make_stranger(bases("llama"), tmp_path / "theirs")
    published = take(folder, registry, bases("llama"))
    assert published.card().extra["source"] == {"folder": "theirs"}
    for path in published.path.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_base_path_in_the_config_is_followed_only_where_allowed(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    folder = make_stranger(bases("llama"), tmp_path / "theirs")
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == str(bases("llama"))
    with pytest.raises(BaseNotFound, match=r"place on its maker's machine; say which with --base"):
        take(folder, registry, None)
    assert take(folder, registry, None, paths=True).base == "local/llama"
    change_config(folder, base_model_name_or_path="local/llama")
    with pytest.raises(BaseNotFound, match=r"place on its maker's machine; say which with --base"):
        take(folder, registry, None)
    with pytest.raises(BaseNotFound, match=r"was a folder on the machine.*with --base"):
        take(folder, registry, None, paths=True)


def test_a_base_that_cannot_be_had_is_explained_with_the_catalogs_relative(
    registry: Registry, tmp_path: Path, bases: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str, **_: Any) -> None:
        raise BaseNotFound(f"no base {name!r}")

    monkeypatch.setattr("adapterhub.pipeline.adopt.open_base", offline)
    folder = change_config(
        make_stranger(bases("llama"), tmp_path / "theirs"),
        base_model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
    with pytest.raises(BaseNotFound, match=r"Q4_1 GGUF.*--base smollm2-135m-instruct"):
        take(folder, registry, None)
    change_config(folder, base_model_name_or_path="")
    with pytest.raises(BaseNotFound, match="names no base; say which with --base"):
        take(folder, registry, None)


def first_b(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if "lora_B" in name)


def poison(value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[first_b(tensors)][0, 0] = value
        return tensors

    return change


def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in tensors.items()}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


BAD_TENSORS: dict[str, tuple[Callable[..., dict[str, Tensor]], str]] = {
    "nan": (poison(float("nan")), "NaN or infinite"),
    "inf": (poison(float("inf")), "NaN or infinite"),
    "no effect": (zero, "changes nothing"),
    "half a pair": (without("layers.0.self_attn.q_proj.lora_B"), "both lora_A and lora_B"),
    "unknown layer": (renamed("layers.2.", "layers.7."), "does not have as a linear layer"),
    "other model class": (renamed("model.model.layers", "model.transformer.layers"), "another architecture"),
    "named adapter": (renamed("lora_A.weight", "lora_A.lora.weight"), "neither a LoRA matrix nor"),
    "traversal": (renamed("layers.0.", "../layers.0."), "adapt|another architecture|does not have"),
    "embeddings": (
        lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.ones(259, 32)},
        "neither a LoRA",
    ),
    "module not named": (renamed("v_proj", "k_proj"), "target_modules, exclude_modules"),
    "empty": (lambda _: {}, "no tensors"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(
    name: str, bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    change, says = BAD_TENSORS[name]
    folder = change_tensors(make_stranger(bases("llama"), tmp_path / "theirs"), change)
    with pytest.raises(CorruptAdapter, match=says):
        take(folder, registry, bases("llama"))
    assert not registry.root.exists()


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "dora without magnitudes": ({"use_dora": True}, "no lora_magnitude_vector"),
    "bias": ({"bias": "lora_only"}, "bias"),
    "lora bias": ({"lora_bias": True}, "lora_bias"),
    "ia3": ({"peft_type": "IA3", "r": None}, "IA3"),
    "no peft type": ({"peft_type": None}, "peft_type"),
    "feature extraction": ({"task_type": "FEATURE_EXTRACTION"}, "made for another architecture"),
    "no task type": ({"task_type": None}, "SEQ_CLS"),
    "pissa": ({"init_lora_weights": "pissa"}, "pissa"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "a later variant": ({"use_something_new": True}, "use_something_new"),
    "another rank": ({"r": 5}, "has rank 4, but adapter_config.json says 5"),
    "no rank": ({"r": None}, "r = None; expected a number"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha = inf"),
    "bad alpha": ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern = "),
    "bad pattern": ({"alpha_pattern": {"(": 3}}, "alpha_pattern = "),
    "no pattern": ({"rank_pattern": ["q_proj"]}, "rank_pattern = "),
    "bad regex": ({"target_modules": "(("}, "no pattern"),
    "no targets": ({"target_modules": None}, "names no target_modules"),
    "excluded": ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
    "layers left out": ({"layers_to_transform": [0]}, "layers_to_transform"),
    "head promised": ({"task_type": "SEQ_CLS"}, "no classification head"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configurations_that_cannot_be_served_exactly_are_refused(
    name: str, bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    changes, says = BAD_CONFIGS[name]
    folder = change_config(make_stranger(bases("llama"), tmp_path / "theirs"), **changes)
    with pytest.raises(AdapterError, match=says):
        take(folder, registry, bases("llama"))
    assert not registry.root.exists()


def test_another_base_is_refused_by_its_shapes(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    wide = make_tiny_base(tmp_path / "wide", hidden_size=64)
    folder = make_stranger(wide, tmp_path / "theirs")
    with pytest.raises(CorruptAdapter, match="made for another base"):
        take(folder, registry, bases("llama"))
    with pytest.raises(AdapterError, match=r"cannot sit on .* an encoder"):
        take(folder, registry, bases("bert"))
    classifier = make_stranger(wide, tmp_path / "head", labels=2, target_modules=["q_proj"])
    with pytest.raises(CorruptAdapter):
        take(classifier, registry, bases("llama"))


def test_a_regression_head_is_refused(bases: Callable[[str], Path], registry: Registry, tmp_path: Path) -> None:
    folder = make_stranger(bases("llama"), tmp_path / "theirs", labels=1)
    with pytest.raises(AdapterError, match="regression"):
        take(folder, registry, bases("llama"))


def test_a_base_without_a_pad_token_needs_one_named(registry: Registry, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = base / name
        if path.exists():
            record = json.loads(path.read_text())
            record.pop("pad_token", None)
            path.write_text(json.dumps(record))
    folder = make_stranger(base, tmp_path / "theirs", labels=2)
    with pytest.raises(BaseError, match="no pad token"):
        take(folder, registry, base)
    assert take(folder, registry, base, pad_token="<|end|>").spec().pad_token == "<|end|>"


def test_pickle_links_and_wrong_folders_are_refused(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    base = bases("llama")
    folder = make_stranger(base, tmp_path / "theirs")
    linked = tmp_path / "linked"
    linked.mkdir()
    shutil.copy(folder / CONFIG, linked)
    (linked / WEIGHTS).symlink_to(folder / WEIGHTS)
    with pytest.raises(UnsafeAdapter, match="symbolic link"):
        take(linked, registry, base)
    (tmp_path / "door").symlink_to(folder)
    with pytest.raises(FileMissing, match="is neither a folder"):
        take(tmp_path / "door", registry, base)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UnsafeAdapter, match="pickle"):
        take(folder, registry, base)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileMissing):
        take(folder, registry, base)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(CorruptAdapter, match="expected an object"):
        take(folder, registry, base)
    (folder / CONFIG).unlink()
    with pytest.raises(FileMissing, match="no adapter_config"):
        take(folder, registry, base)


def test_task_names_cannot_leave_the_registry(bases: Callable[[str], Path], registry: Registry, tmp_path: Path) -> None:
    folder = make_stranger(bases("llama"), tmp_path / "theirs")
    for name in ("../x", "a/b", "", ".hidden", "Upper"):
        with pytest.raises(UsageError, match="cannot be a task"):
            adopt(folder, registry, Request(name, base=str(bases("llama"))))


@pytest.mark.parametrize("name", CATALOG)
def test_a_task_cannot_have_the_name_of_a_base(name: str, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NameTaken, match=f"'{name}' has the name of a base"):
        adopt(tmp_path, registry, Request(name))
    with pytest.raises(NameTaken, match=f"'{name}' has the name of a base"):
        pull("me/tone", registry, Request(name))


def test_a_task_stays_on_its_base(bases: Callable[[str], Path], registry: Registry, tmp_path: Path) -> None:
    take(make_stranger(bases("llama"), tmp_path / "one"), registry, bases("llama"))
    with pytest.raises(BaseMismatch):
        take(make_stranger(bases("qwen2"), tmp_path / "two"), registry, bases("qwen2"))


def test_a_version_of_another_registry_keeps_its_digest_and_card(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    first = take(
        make_stranger(bases("llama"), tmp_path / "theirs", labels=2), registry, bases("llama"), labels=["a", "b"]
    )
    there = Registry(tmp_path / "there")
    second = adopt(first.path, there, Request("copy", source={"hub": "me/tone", "commit": "1" * 40}))
    assert (second.task, second.digest, second.created) == ("copy", first.digest, True)
    assert second.card().extra["source"]["hub"] == "me/tone"
    assert second.card().created_at == first.card().created_at
    with pytest.raises(UsageError, match="leave --labels"):
        adopt(first.path, there, Request("copy", labels=["x", "y"]))


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, "task.json"])
def test_a_version_whose_bytes_changed_is_refused(
    file: str, bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    first = take(make_stranger(bases("llama"), tmp_path / "theirs"), registry, bases("llama"))
    copy = shutil.copytree(first.path, tmp_path / "copy")
    data = bytearray((copy / file).read_bytes())
    if file == WEIGHTS:
        data[-1] ^= 1
    else:
        data = bytearray(bytes(data).replace(b"\n}", b" \n}"))
    (copy / file).write_bytes(data)
    with pytest.raises(CorruptAdapter, match="but its card says"):
        adopt(copy, Registry(tmp_path / "there"), Request("copy"))


@pytest.mark.parametrize(
    "changes",
    [
        {"base": {}},
        {"base": {"name": 1, "public_id": 2, "fingerprint": 3}},
        {"metrics": {"a": {}}},
        {"format": 9},
        {"data": {"x": 1}},
    ],
)
def test_a_card_that_is_none_is_refused_not_tripped_over(
    changes: dict[str, Any], bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    first = take(make_stranger(bases("llama"), tmp_path / "theirs"), registry, bases("llama"))
    copy = shutil.copytree(first.path, tmp_path / "copy")
    record = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps({**record, **changes}))
    with pytest.raises(CorruptAdapter):
        adopt(copy, Registry(tmp_path / "there"), Request("copy"))
    (copy / "card.json").unlink()
    with pytest.raises(FileMissing, match="no whole version"):
        adopt(copy, Registry(tmp_path / "there"), Request("copy"))


def test_a_version_is_not_put_on_another_base(bases: Callable[[str], Path], registry: Registry, tmp_path: Path) -> None:
    first = take(make_stranger(bases("llama"), tmp_path / "theirs"), registry, bases("llama"))
    there = Registry(tmp_path / "there")
    with pytest.raises(BaseMismatch, match="leave --base out"):
        adopt(first.path, there, Request("copy", base=str(make_tiny_base(tmp_path / "other", seed=5))))
    same = adopt(first.path, there, Request("copy", base=str(bases("llama"))))
    assert same.base_fingerprint == open_base(str(bases("llama"))).fingerprint


def forge(version: Published, target: Path, base: str = "", **changes: Any) -> Path:
    """Copy a version with other rules (and base name) and a card that vouches for them, as a stranger might send it."""
    shutil.copytree(version.path, target)
    rules = {**json.loads((target / "task.json").read_text()), **changes}
    (target / "task.json").write_text(json.dumps(rules))
    card = json.loads((target / "card.json").read_text())
    card["digest"] = digest_folder(target)
    card["base"] = {**card["base"], **({"name": base, "public_id": base} if base else {})}
    (target / "card.json").write_text(json.dumps(card))
    return target


FORGED: dict[str, tuple[str, int | None, dict[str, Any], str]] = {
    "too few labels": ("llama", 3, {"labels": ["a", "b"]}, "names 2 labels, but the head has 3 rows"),
    "the same label twice": ("llama", 3, {"labels": ["a", "b", "b"]}, "expected different texts"),
    "labels that are none": ("llama", 2, {"labels": [1, 2]}, "expected different texts"),
    "unknown pooling": ("llama", 2, {"pooling": "mean"}, "'mean'"),
    "no pooling": ("llama", 2, {"pooling": None}, "pooling None"),
    "another pooling": ("llama", 2, {"pooling": "pooler"}, r"needs the tensor 'classifier\.weight'"),
    "two-layer pooling": ("bert", 2, {"pooling": "cls"}, r"needs the tensor 'classifier\.dense\.weight'"),
    "no head": ("llama", None, {"kind": "classification", "pooling": "last", "labels": ["a", "b"]}, "head has nothing"),
    "a head that writes": ("llama", 2, {"kind": "generation", "pooling": None, "labels": []}, "this one has"),
    "a cold temperature": (
        *("llama", 2, {"format": 2, "calibration": {"temperature": 0, "reject_below": None}}),
        r"calibration\.temperature 0;",
    ),
    "no threshold": (
        *("llama", 2, {"format": 2, "calibration": {"temperature": 1.5, "reject_below": 7}}),
        r"calibration\.reject_below 7;",
    ),
    "sure of what it writes": (
        *("llama", None, {"format": 2, "calibration": {"temperature": 1.5, "reject_below": None}}),
        "no probabilities to calibrate",
    ),
    "no length": ("llama", 2, {"max_length": 0}, "max_length 0"),
}


def test_a_calibrated_version_is_taken_as_it_is(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    first = take(make_stranger(bases("llama"), tmp_path / "theirs", labels=2), registry, bases("llama"))
    sent = forge(first, tmp_path / "sent", format=2, calibration={"temperature": 1.5, "reject_below": 0.6})
    taken = adopt(sent, Registry(tmp_path / "there"), Request("copy"))
    assert taken.digest == digest_folder(sent) != first.digest
    assert (taken.path / "task.json").read_bytes() == (sent / "task.json").read_bytes()
    assert taken.spec().calibration == Calibration(1.5, 0.6)


@pytest.mark.parametrize("name", FORGED)
def test_a_version_whose_rules_do_not_fit_its_tensors_is_refused(
    name: str, bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    family, labels, changes, says = FORGED[name]
    lora = {"target_modules": ["query"]} if family == "bert" else {}
    first = take(make_stranger(bases(family), tmp_path / "theirs", labels=labels, **lora), registry, bases(family))
    there = Registry(tmp_path / "there")
    assert adopt(forge(first, tmp_path / "kept"), there, Request("copy")).created
    with pytest.raises(CorruptAdapter, match=says):
        adopt(forge(first, tmp_path / "forged", **changes), there, Request("other"))
    assert there.tasks() == ["copy"]


def test_a_version_is_held_against_its_base_where_that_is_here(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = make_tiny_base(tmp_path / "wide", hidden_size=64)
    first = take(make_stranger(wide, tmp_path / "theirs", labels=2), registry, wide)
    here = open_base(str(bases("llama")))
    asked = []

    def on_this_machine(name: str, *, fetch: bool = True, **_: Any) -> Any:
        asked.append((name, fetch))
        return here

    monkeypatch.setattr("adapterhub.pipeline.adopt.open_base", on_this_machine)
    there = Registry(tmp_path / "there")
    # Another base of that name says nothing about the adapter.
    assert adopt(forge(first, tmp_path / "kept", base="org/wide"), there, Request("copy")).created
    claimed = {"base_fingerprint": here.fingerprint}
    forged = forge(first, tmp_path / "forged", base="org/tiny", **claimed)
    card = json.loads((forged / "card.json").read_text())
    (forged / "card.json").write_text(json.dumps({**card, "base": {**card["base"], "fingerprint": here.fingerprint}}))
    with pytest.raises(CorruptAdapter, match="made for another base"):
        adopt(forged, there, Request("other"))
    assert asked == [("org/wide", False), ("org/tiny", False)]


def test_a_version_reads_no_more_than_its_base(
    bases: Callable[[str], Path], registry: Registry, tmp_path: Path
) -> None:
    first = take(make_stranger(bases("llama"), tmp_path / "theirs", labels=2), registry, bases("llama"))
    forged = forge(first, tmp_path / "forged", max_length=513)
    with pytest.raises(CorruptAdapter, match="reads 512 tokens"):
        adopt(forged, Registry(tmp_path / "there"), Request("copy", base=str(bases("llama"))))
