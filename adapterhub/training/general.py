"""Any transformers base with an adapter under PEFT: what the packed decoder does not compute learns here.

One adapter at a time, rows padded to the longest, gradients by autograd. It is the reference of the packed decoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from adapterhub.base.features import default_pooling, pool_rows
from adapterhub.base.load import compute_dtype, load_backbone, load_classifier, pooling_of
from adapterhub.data.task import Pooling
from adapterhub.lora.config import AdapterConfig

from .batches import ordered_batches
from .begin import Principal, principal_pairs
from .job import PART_TOKENS, TrainingJob
from .learner import Judged, Learner, Turn
from .objectives import Objective, Preference
from .parts import Limits, accumulate, outputs_of
from .rows import PaddedBatch, Row
from .targets import Modules, adapter_config, check_ranks, choose_targets, without_layers

# Plain matrix attention: the backward of CPU flash attention costs 25 times its forward at short lengths. Beyond this
# many tokens the matrices it keeps for every layer would fill the memory instead.
EAGER_UP_TO = 512
# What PEFT puts before the names of the model it wraps.
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class PeftLearner:
    """The model under PEFT, and where its parts are: an adapter that learns, and the network it learns on.

    Base parameters are frozen in the compute dtype, trainable ones are float32.
    """

    model: Any
    config: AdapterConfig
    pooling: Pooling | None
    dtype: torch.dtype

    def parameters(self) -> Mapping[str, Tensor]:
        """Return the parameters that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def refresh(self) -> None:
        """Do nothing: the network computes with the parameters themselves."""

    def clear(self) -> None:
        """Set the gradients to zero."""
        for parameter in self.parameters().values():
            parameter.grad = None

    def saved(self) -> Mapping[str, Tensor]:
        """Return the trained tensors under PEFT's saved key names."""
        # "auto" would ask the Hub whether the vocabulary changed.
        found: dict[str, Tensor] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return found

    def random_state(self) -> Tensor:
        """Return the state of torch's own generator of the device, which PEFT's dropout draws from."""
        found: Tensor = self._generator.get_rng_state()
        return found

    def set_random_state(self, state: Tensor) -> None:
        """Put torch's own generator where it was."""
        self._generator.set_rng_state(state)

    @property
    def inner(self) -> Any:
        """The transformers model with the LoRA layers in it."""
        return self.model.get_base_model()

    @property
    def head(self) -> nn.Module:
        """The module that makes logits over the vocabulary; only decoders for generation have it."""
        head: nn.Module = self.inner.get_output_embeddings()
        return head

    def classify(self, batch: PaddedBatch) -> Tensor:
        """Return logits [rows, labels].

        Decoders are pooled at each row's last token by position. transformers looks for the last token that is not
        the pad token instead, which is another one where a text itself ends with the pad token.
        """
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.pooling != "last":
            logits: Tensor = self.model(**inputs).logits
            return logits
        backbone = getattr(self.inner, self.inner.base_model_prefix)
        hidden = backbone(**inputs, use_cache=False)[0]
        rows = torch.arange(len(hidden), device=hidden.device)
        pooled: Tensor = self.inner.score(hidden[rows, batch.lengths - 1])
        return pooled

    def answer_logprobs(self, batch: PaddedBatch) -> Tensor:
        """Return the log-probability of each token of the completions; the vocabulary is wide, so no other logits."""
        rows, columns = completion_positions(batch)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with only_positions(self.head, rows, columns - 1):
            logits: Tensor = self.model(**inputs, use_cache=False).logits[0]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.log_softmax(-1).gather(1, batch.input_ids[rows, columns][:, None])[:, 0]

    def embed(self, batch: PaddedBatch) -> Tensor:
        """Return the pooled last hidden states [sequences, hidden] in float32."""
        assert self.pooling is not None, "an embedding task has one"
        states = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **self._no_cache)[0]
        return pool_rows(states, batch.lengths, self.pooling)

    @property
    def _generator(self) -> Any:
        device = next(self.model.parameters()).device
        return torch.random if device.type == "cpu" else torch.get_device_module(device)

    @property
    def _no_cache(self) -> dict[str, bool]:
        """Keep decoders from keeping keys and values; encoders know no such option."""
        return {"use_cache": False} if hasattr(self.inner.config, "use_cache") else {}


class GeneralNetwork:
    """One adapter on one model; each turn is that adapter's."""

    pads = True

    def __init__(self, learner: PeftLearner, pad_token_id: int, batch_size: int, device: torch.device) -> None:
        self.dtype, self.device = learner.dtype, device
        self._limits = Limits(batch_size, PART_TOKENS, pad_token_id)

    def learn(self, turns: Sequence[Turn]) -> list[float]:
        """Add the gradients of each turn's loss to its learner's, and return the losses."""
        return [self._learn(turn) for turn in turns]

    @torch.no_grad()
    def judge(self, learner: Learner, objective: Objective, rows: Sequence[Row]) -> Judged:
        """Return what `rows` come to with the adapter as it is, without dropout."""
        loss = share = 0.0
        tallies = []
        with _evaluating(_peft(learner)) as view:
            for indices in ordered_batches([row.length for row in rows], self._limits.batch_size):
                part = [rows[i] for i in indices]
                for outputs, batch in outputs_of(view, objective, part, self._limits, self.device):
                    loss += float(objective.loss(outputs, batch))
                    share += float(objective.share(batch))
                    tallies.append(objective.tally(outputs, batch))
        return Judged(loss, share, tallies)

    @torch.no_grad()
    def bare_logprobs(self, learner: Learner, rows: Sequence[Row]) -> list[list[float]]:
        """Return for each row the log-probabilities that the bare base gives its sequences' completions."""
        found: list[list[float]] = [[] for _ in rows]
        objective = Preference()
        with _evaluating(_peft(learner)) as view, view.model.disable_adapter():
            for indices in ordered_batches([row.length for row in rows], self._limits.batch_size):
                part = [rows[i] for i in indices]
                told = [
                    value
                    for outputs, batch in outputs_of(view, objective, part, self._limits, self.device)
                    for value in objective.log_probabilities(outputs, batch).tolist()
                ]
                for index in indices:
                    count = len(rows[index].sequences)
                    found[index], told = told[:count], told[count:]
        return found

    def _learn(self, turn: Turn) -> float:
        if not turn.rows:
            return 0.0
        learner = _peft(turn.learner)
        learner.model.train()
        return accumulate(learner, turn.objective, turn.rows, turn.share, self._limits, self.device)


def _peft(learner: Learner) -> PeftLearner:
    assert isinstance(learner, PeftLearner), "this network trains its own learner only"
    return learner


@contextmanager
def _evaluating(learner: PeftLearner) -> Iterator[PeftLearner]:
    learner.model.eval()
    try:
        yield learner
    finally:
        learner.model.train()


def completion_positions(batch: PaddedBatch) -> tuple[Tensor, Tensor]:
    """Return (row, column) of every completion token, EOS included and padding not, row by row."""
    columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    rows, found = torch.where((columns >= batch.starts[:, None]) & (columns < batch.lengths[:, None]))
    return rows, found


@contextmanager
def only_positions(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let `head` see only these positions of [rows, columns, hidden]: [1, n, hidden].

    A hook at the door of the head keeps whatever else the model does to its logits (scaling, soft-capping).
    """

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, columns].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def build_learner(job: TrainingJob, pad_token_id: int, longest: int, device: torch.device) -> PeftLearner:
    """Load the base and put a fresh adapter on it; `longest` is the longest row in tokens.

    All randomness comes from the recipe's seed. Raises ConfigError for targets or layers the base does not have, and
    BaseError where the base cannot be used so.
    """
    lora, kind = job.recipe.lora, job.spec.kind
    dtype = compute_dtype(job.recipe.training.precision, device.type)
    attention = "eager" if longest <= EAGER_UP_TO else "sdpa"
    torch.manual_seed(job.recipe.training.seed)
    if kind in ("generation", "embedding"):
        model = load_backbone(job.base, dtype, attention=attention)
        if kind == "embedding":
            # Without its language-model head, so that the tensors are called as PEFT finds them on an AutoModel.
            model = getattr(model, model.base_model_prefix, model)
    else:
        model = load_classifier(job.base, len(job.spec.labels), kind == "multilabel", dtype, attention, pad_token_id)
    model.requires_grad_(requires_grad=False)
    heads = _heads(model)
    modules = Modules.of(model, heads)
    targets = choose_targets(modules, lora.targets, lora.layers)
    config = adapter_config(job, without_layers(modules, targets) if kind == "embedding" else targets, heads)
    pooling = _pooling(job, model)
    torch.manual_seed(job.recipe.training.seed)
    with warnings.catch_warnings():
        # PEFT only warns of ranks for modules that are not there; they are checked below.
        warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
        # PEFT asks every model under a name that newer transformers call deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = get_peft_model(model, _peft_config(config), autocast_adapter_dtype=True)
    check_ranks(config, _adapted(adapted))
    # Only now: what is drawn above is drawn on the CPU, so that an adapter begins alike on every device.
    network = PeftLearner(adapted.to(device), config, pooling, dtype)
    _trainable_in_float32(network)
    return network


def begin_at_principal(learner: PeftLearner, seed: int) -> Principal:
    """Have a fresh learner begin at the principal components of the base's weights, which lose them."""
    model = learner.model
    layers = {f"{_PREFIX}{name}": model.get_submodule(f"{_PREFIX}{name}") for name in _adapted(model)}

    def weight_of(name: str) -> Tensor:
        layer = layers[name]
        weight: Tensor = layer.base_layer.weight.data
        return weight.T if learner.config.fan_in_fan_out else weight

    found = principal_pairs(
        layers, weight_of, lambda name: layers[name].r["default"], lambda name: layers[name].scaling["default"], seed
    )
    with torch.no_grad():
        for name, (a, b) in found.pairs.items():
            layers[name].lora_A["default"].weight.copy_(a)
            layers[name].lora_B["default"].weight.copy_(b)
            weight_of(name).sub_((layers[name].scaling["default"] * (b @ a)).to(learner.dtype))
    return found


def _adapted(model: Any) -> list[str]:
    """Return the names of the modules that have matrices, as they are called without PEFT."""
    end = ".lora_A.default"
    names = [name for name, _ in model.named_modules() if name.endswith(end)]
    return [name.removesuffix(end).removeprefix(_PREFIX) for name in names]


def _pooling(job: TrainingJob, model: Any) -> Pooling | None:
    if job.spec.kind == "embedding":
        return default_pooling(job.base)
    return None if job.spec.kind == "generation" else pooling_of(model)


def _heads(model: Any) -> tuple[str, ...]:
    """Return the names of the children with parameters beside the backbone: "score", "classifier", "lm_head"."""
    if not hasattr(model, model.base_model_prefix):
        return ()
    children = model.named_children()
    return tuple(name for name, m in children if name != model.base_model_prefix and any(True for _ in m.parameters()))


def _peft_config(config: AdapterConfig) -> LoraConfig:
    return LoraConfig(
        task_type=config.task_type,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        layers_to_transform=None if config.layers is None else list(config.layers),
        use_rslora=config.rslora,
        use_dora=config.dora,
        rank_pattern=dict(config.rank_pattern),
        modules_to_save=list(config.modules_to_save) or None,
        fan_in_fan_out=config.fan_in_fan_out,
    )


def _trainable_in_float32(network: PeftLearner) -> None:
    """Keep what learns in float32, and hand the head its input so; PEFT casts the LoRA matrices and theirs itself."""
    for parameter in network.parameters().values():
        parameter.data = parameter.data.float()
    for name in network.config.modules_to_save:
        getattr(network.inner, name).register_forward_pre_hook(_to_float32)


def _to_float32(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)
