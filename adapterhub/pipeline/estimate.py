"""What a training will take, said before it runs: steps, adapter size, memory and time.

Adapter size is exact, and so are steps, but where batches are cut by tokens. Memory and time are estimates: tokens are
counted on a sample, activations by a rule of thumb, and speed from a matrix product timed here and now.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.base.architecture import read_config, spelled_alike
from adapterhub.base.source import Base
from adapterhub.base.tensors import stored_tensors
from adapterhub.data.example import Example
from adapterhub.data.task import TaskSpec
from adapterhub.data.tokens import Tokenizer, encode_completion, encode_input
from adapterhub.errors import ConfigError, DataError, InvalidRequest
from adapterhub.recipe import Recipe
from adapterhub.training.job import PART_TOKENS
from adapterhub.training.schedule import steps_per_epoch, total_steps

if TYPE_CHECKING:
    import torch

# A layer's index is the first numbered part of a stored name, as PEFT reads it.
_IN_LAYER = re.compile(r"(?:.*?\.)?(?P<index>\d+)\.(?P<module>.+)\.weight")
_SAMPLE = 1000  # rows whose tokens are counted, evenly spread
_LONGEST = 50  # and as many of the rows with the most characters
_PROCESS_BYTES = 700_000_000  # interpreter, torch, transformers and their buffers
_TENSOR_HEADER = 130  # bytes that safetensors' header takes for each tensor
_STEP_SECONDS = 0.05  # what a step takes however small the base: Python, kernels' launches, the optimiser
_EFFICIENCY = 0.4  # of the timed matrix product: attention, norms, optimiser and padding take the rest


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows of a split: means a row (all that is read, completions alone), and the longest sequence."""

    rows: int
    mean: float
    completion: float
    longest: int
    longest_where: str


@dataclass(frozen=True)
class Estimate:
    """What a training will take; bytes and seconds, `tokens` over all steps, evaluations aside."""

    steps: int
    tokens: int
    longest_row: int
    adapter_parameters: int
    adapter_bytes: int
    precision: str
    peak_memory_bytes: int
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def adapted_modules(
    shapes: Mapping[str, Sequence[int]], targets: str | Sequence[str], layers: str | Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Return name and shape [out, in] (GPT-2: [in, out]) of every stored weight that gets LoRA matrices.

    `shapes` are those of all stored tensors. Raises ConfigError for a target or layer that the base does not have.
    """
    linear = {
        name: (int(match["index"]), match["module"], (shape[0], shape[1]))
        for name, shape in shapes.items()
        if len(shape) == 2 and (match := _IN_LAYER.fullmatch(name))
    }
    modules = {module for _, module, _ in linear.values()}
    wanted = modules if targets == "all-linear" else _matching(targets, modules)
    chosen = _chosen_layers(layers, 1 + max((index for index, _, _ in linear.values()), default=-1))
    return {name: shape for name, (index, module, shape) in linear.items() if module in wanted and index in chosen}


def adapter_parameters(
    modules: Mapping[str, tuple[int, int]], rank: int, head: int = 0, ranks: Mapping[str, int] | None = None
) -> int:
    """Return the parameters of an adapter: A [rank, in] and B [out, rank] for each module, and `head` of them.

    `ranks` gives modules another rank by the ends of their names, the first that fits (`lora.rank_pattern`).
    """

    def rank_of(module: str) -> int:
        fits = (each for end, each in (ranks or {}).items() if f".{module.removesuffix('.weight')}".endswith(f".{end}"))
        return next(fits, rank)

    return sum(rank_of(module) * (rows + columns) for module, (rows, columns) in modules.items()) + head


def measure_lengths(tokenizer: Tokenizer, spec: TaskSpec, examples: Sequence[Example]) -> Lengths:
    """Count the tokens of a sample of `examples`, the longest among them, exactly as training will.

    Raises DataError where a row is longer than the task takes, or cannot be rendered.
    """
    step = max(1, len(examples) // _SAMPLE)
    sample = [_tokens(tokenizer, spec, example) for example in examples[::step]]
    by_length = sorted(examples, key=_characters, reverse=True)[:_LONGEST]
    longest, where = max((each, example.where) for example in by_length for each in _lengths(tokenizer, spec, example))
    if longest > spec.max_length:
        raise DataError(
            f"{where}: the row has {longest} tokens, more than max_length {spec.max_length}; shorten or remove it, "
            "or set a larger max_length in the recipe if the base's context allows it"
        )
    mean = sum(map(sum, sample)) / len(sample)
    return Lengths(len(examples), mean, sum(answer for _, answer in sample) / len(sample), longest, where)


def estimate(recipe: Recipe, base: Base, spec: TaskSpec, train: Lengths, validation: Lengths) -> Estimate:
    """Return what training `recipe` on `base` will take on this machine.

    Raises ConfigError where the recipe names targets or layers that the base does not have.
    """
    from adapterhub.base.load import compute_dtype

    shapes = {tensor.name: tensor.shape for tensor in stored_tensors(base.path)}
    config = spelled_alike(read_config(base.path))
    modules = adapted_modules(shapes, recipe.lora.targets, recipe.lora.layers)
    hidden = int(config["hidden_size"])
    head = len(spec.labels) * (hidden + base.is_encoder)  # an encoder's head has a bias
    lora, settings = recipe.lora, recipe.training
    magnitudes = sum(out for out, _ in modules.values()) if lora.variant == "dora" else 0
    parameters = adapter_parameters(modules, lora.rank, head + magnitudes, lora.rank_pattern)
    # What PiSSA began with is published beside what came of it.
    published = parameters + (
        adapter_parameters(modules, lora.rank, 0, lora.rank_pattern) if lora.init == "pissa" else 0
    )
    batch = settings.batch_size if settings.batch_tokens is None else max(1, int(settings.batch_tokens / train.mean))
    steps = total_steps(train.rows, batch, epochs=settings.epochs, steps=settings.steps)
    seen = min(steps * batch, steps / steps_per_epoch(train.rows, batch) * train.rows)
    dtype = compute_dtype(settings.precision, "cpu")
    every = sum(rows * columns for rows, columns in adapted_modules(shapes, "all-linear", "all").values())
    vocabulary = int(config.get("vocab_size", 0)) * hidden if spec.kind == "generation" else 0
    evaluations = max(1, steps // (settings.eval_every or steps_per_epoch(train.rows, batch)))
    # Two operations a weight forward; backward two more for the input's gradient, and two for those that learn.
    operations = seen * (train.mean * (4 * every + 6 * parameters) + train.completion * 4 * vocabulary)
    if recipe.kind == "preference":  # what the base alone says of every row, once
        evaluations += 1
        operations += train.rows * (train.mean * 2 * every + train.completion * 2 * vocabulary)
    operations += evaluations * validation.rows * (validation.mean * 2 * every + validation.completion * 2 * vocabulary)
    return Estimate(
        steps=steps,
        tokens=round(seen * train.mean),
        longest_row=max(train.longest, validation.longest),
        adapter_parameters=published,
        adapter_bytes=4 * published + _TENSOR_HEADER * (2 * len(modules) + 1),
        precision=str(dtype).removeprefix("torch."),
        peak_memory_bytes=_peak_memory(base, config, parameters, train, batch, dtype.itemsize),
        seconds=steps * _STEP_SECONDS + operations / (_EFFICIENCY * matmul_rate(dtype, hidden)),
    )


def matmul_rate(dtype: torch.dtype, width: int, seconds: float = 0.2) -> float:
    """Return floating-point operations a second of [512, width] x [width, 4 width] products, the best in `seconds`.

    The best, since others at work on the machine now will be gone, or not, when training runs.
    """
    import torch

    left, right = torch.ones(512, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    best, ends = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < ends or best == math.inf:
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * width * 4 * width / best


def _matching(targets: str | Iterable[str], modules: Iterable[str]) -> set[str]:
    wanted: set[str] = set()
    for target in targets:
        found = {module for module in modules if module == target or module.endswith(f".{target}")}
        if not found:
            raise ConfigError(f"lora.targets: {target!r} is no linear module of this base; it has {_listed(modules)}")
        wanted |= found
    return wanted


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "none in numbered layers"


def _chosen_layers(layers: str | Sequence[int], count: int) -> set[int]:
    if layers == "all":
        return set(range(count))
    wanted = range(count - int(layers.removeprefix("top-")), count) if isinstance(layers, str) else layers
    if any(not 0 <= index < count for index in wanted):
        shown = repr(layers) if isinstance(layers, str) else list(layers)
        raise ConfigError(f"lora.layers: {shown}, but this base has {count} layers, 0 to {count - 1}")
    return set(wanted)


def _sequences(tokenizer: Tokenizer, spec: TaskSpec, example: Example) -> list[tuple[int, int]]:
    """Return the tokens of each sequence that training makes of a row: of the input, and of the completion."""
    inputs = [example.fields]
    if spec.kind == "embedding":
        others = [text for text in (example.positive, example.negative) if text is not None]
        inputs += [{**example.fields, "text": text} for text in others]
    try:
        asked = [len(encode_input(tokenizer, spec, fields)) for fields in inputs]
    except InvalidRequest as error:
        raise DataError(f"{example.where}: {error}") from error
    if spec.kind != "generation":
        return [(length, 0) for length in asked]
    return [(asked[0], len(encode_completion(tokenizer, answer))) for answer in example.completions] or [(asked[0], 0)]


def _tokens(tokenizer: Tokenizer, spec: TaskSpec, example: Example) -> tuple[int, int]:
    asked, answered = zip(*_sequences(tokenizer, spec, example), strict=True)
    return sum(asked), sum(answered)


def _lengths(tokenizer: Tokenizer, spec: TaskSpec, example: Example) -> list[int]:
    return [sum(each) for each in _sequences(tokenizer, spec, example)]


def _characters(example: Example) -> int:
    return len(str(dict(example.fields)))


def _peak_memory(
    base: Base, config: Mapping[str, Any], parameters: int, train: Lengths, batch_size: int, width: int
) -> int:
    """Add up base, adapter with gradients and Adam's two moments, and what one part of a batch keeps for backward.

    A layer keeps about ten vectors of the hidden size, five of the intermediate size and two rows of attention
    probabilities a head, for each token.
    """
    hidden = int(config["hidden_size"])
    inner = int(config.get("intermediate_size") or 4 * hidden)
    heads = int(config.get("num_attention_heads", 1))
    padded = min(max(PART_TOKENS, train.longest), batch_size * train.longest)
    kept = int(config["num_hidden_layers"]) * (10 * hidden + 5 * inner + 2 * heads * min(train.longest, 512))
    answered = padded * train.completion / train.mean
    logits = round(3 * 4 * answered * int(config.get("vocab_size", 0)))
    return _PROCESS_BYTES + base.parameters * width + 16 * parameters + padded * kept * width + logits
