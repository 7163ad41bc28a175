"""Whether an adapter's tensors are what its rules say, and whether they fit a base: asked before it is published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base
from adapterhub.data.task import FEATURE_POOLINGS, TaskSpec
from adapterhub.errors import AdapterError, BaseError, CorruptAdapter

if TYPE_CHECKING:
    from adapterhub.lora.weights import LoraWeights

_PREFIX, _A = "base_model.model.", ".lora_A.weight"
# The tensor whose rows are the labels, by the kind of head.
_HEAD_OUTPUTS = ("score.weight", "classifier.out_proj.weight", "classifier.weight")
_HEADS = {
    "last": ("score.weight",),
    "pooler": ("classifier.weight",),
    "cls": ("classifier.dense.weight", "classifier.out_proj.weight"),
}


def adapted_modules(tensors: Iterable[str]) -> list[str]:
    """Return the names of the adapted modules in the whole model, from the names of the stored tensors, sorted."""
    return sorted(name.removeprefix(_PREFIX).removesuffix(_A) for name in tensors if name.endswith(_A))


def count_classes(weights: LoraWeights) -> int | None:
    """Return how many classes the head has, None without a head. Raises AdapterError for a regression."""
    if not weights.head:
        return None
    output = next((name for name in _HEAD_OUTPUTS if name in weights.head), None)
    if output is None:
        raise CorruptAdapter(f"the head has {', '.join(sorted(weights.head))}, but none of {', '.join(_HEAD_OUTPUTS)}")
    classes = int(weights.head[output].shape[0]) if weights.head[output].ndim else 0
    if classes < 2:
        raise AdapterError(f"the head has {classes} output, a regression; classification needs at least two classes")
    return classes


def check_head_names(weights: LoraWeights, spec: TaskSpec) -> None:
    """Raise CorruptAdapter where the head is not the one that the task's kind and pooling ask for."""
    if spec.kind == "embedding":
        if weights.head or spec.labels or spec.pooling not in FEATURE_POOLINGS:
            raise CorruptAdapter(
                f"an embedding task has no head, no labels, and one of the poolings {', '.join(FEATURE_POOLINGS)}; "
                f"this one has {', '.join(sorted(weights.head)) or 'no head'}, {len(spec.labels)} labels and pooling "
                f"{spec.pooling!r}"
            )
        return
    if spec.kind == "generation":
        if weights.head or spec.pooling is not None or spec.labels:
            raise CorruptAdapter("a generation task has no classification head, no pooling and no labels; this one has")
        return
    wanted = _HEADS.get(spec.pooling or "")
    if wanted is None:
        raise CorruptAdapter(f"task.json has pooling {spec.pooling!r}; expected one of {', '.join(_HEADS)}")
    missing = [name for name in wanted if name not in weights.head]
    if missing:
        raise CorruptAdapter(
            f"a task that pools by {spec.pooling!r} needs the tensor {missing[0]!r}, and the adapter's head has "
            f"{', '.join(sorted(weights.head)) or 'nothing'}"
        )


def check_rules(weights: LoraWeights, spec: TaskSpec) -> None:
    """Raise CorruptAdapter where the tensors of an adapter cannot answer by its own rules, whatever the base."""
    check_head_names(weights, spec)
    classes = count_classes(weights)
    if classes is not None and classes != len(spec.labels):
        raise CorruptAdapter(f"task.json names {len(spec.labels)} labels, but the head has {classes} rows")
    if len(set(spec.labels)) != len(spec.labels) or not all(isinstance(label, str) and label for label in spec.labels):
        raise CorruptAdapter(f"task.json has labels {list(spec.labels)!r}; expected different texts, none empty")
    if spec.max_length < 1:
        raise CorruptAdapter(f"task.json has max_length {spec.max_length}; expected a number of tokens")


def check_on_base(weights: LoraWeights, tensors: Iterable[str], spec: TaskSpec, base: Base) -> None:
    """Raise CorruptAdapter where an adapter and its rules do not fit the base they name."""
    from adapterhub.base.load import pooling_of

    skeleton = make_skeleton(base, count_classes(weights), vectors=spec.kind == "embedding")
    check_shapes(weights, adapted_modules(tensors), skeleton, base)
    if spec.max_length > base.context_length:
        raise CorruptAdapter(
            f"task.json has max_length {spec.max_length}, but {base.name!r} reads {base.context_length} tokens"
        )
    if spec.kind == "embedding":
        return
    expected = None if spec.kind == "generation" else pooling_of(skeleton)
    if spec.pooling != expected:
        raise CorruptAdapter(f"task.json has pooling {spec.pooling!r}, but {base.name!r} is read by {expected!r}")


def make_skeleton(base: Base, classes: int | None, *, vectors: bool = False) -> Any:
    """Return the transformers model PEFT would load an adapter on, with shapes but no weights.

    `classes` None means one that generates, or with `vectors` the backbone alone. Raises AdapterError for a generation
    adapter on an encoder, BaseError for a base that transformers does not know.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    if classes is None and base.is_encoder and not vectors:
        raise AdapterError(
            f"a CAUSAL_LM adapter cannot sit on {base.name!r}, an encoder; name its own base with --base"
        )
    changes = {} if classes is None else {"num_labels": classes}
    headless = AutoModel if vectors else AutoModelForCausalLM
    kind = headless if classes is None else AutoModelForSequenceClassification
    try:
        config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False, **changes)
        with torch.device("meta"):
            return kind.from_config(config)
    except ValueError as error:
        raise BaseError(f"{base.name!r} cannot be loaded: {' '.join(str(error).split())[:400]}") from error


def root_of(skeleton: Any) -> str:
    """Return what the names of the backbone's modules begin with: "model.", or nothing where it stands alone."""
    prefix = str(skeleton.base_model_prefix)
    return f"{prefix}." if hasattr(skeleton, prefix) else ""


def check_shapes(weights: LoraWeights, modules: Sequence[str], skeleton: Any, base: Base) -> None:
    """Raise CorruptAdapter where `modules` or the head are not in `skeleton`, or have other shapes there."""
    from adapterhub.lora.linear import linear_shapes
    from adapterhub.lora.weights import check_fits

    root = root_of(skeleton)
    if stranger := next((name for name in modules if not name.startswith(root)), None):
        raise CorruptAdapter(
            f"the adapter changes {stranger!r}, but all that can be adapted in {base.name!r} lies below {root!r}; "
            "it was made for another architecture or another model class"
        )
    shapes = linear_shapes(skeleton)
    check_fits(weights, {name.removeprefix(root): s for name, s in shapes.items() if name.startswith(root)})
    parameters = skeleton.named_parameters() if weights.head else ()
    wanted = {name: tuple(p.shape) for name, p in parameters if not name.startswith(root)}
    found = {name: tuple(tensor.shape) for name, tensor in weights.head.items()}
    if found != wanted:
        raise CorruptAdapter(f"the head of the adapter has {found}, but {base.name!r} takes {wanted}")
