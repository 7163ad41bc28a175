"""A frozen base with fresh LoRA matrices, and a head where the task has one, ready to be trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterhub.base.features import default_pooling, pool_rows
from adapterhub.base.load import compute_dtype, load_backbone, load_classifier, pooling_of
from adapterhub.data.task import Kind, Pooling
from adapterhub.lora.config import AdapterConfig, TaskType

from .job import TrainingJob
from .rows import Batch
from .targets import Targets, choose_targets, without_layers

# Plain matrix attention: the backward of CPU flash attention costs 25 times its forward at short lengths. Beyond this
# many tokens the matrices it keeps for every layer would fill the memory instead.
EAGER_UP_TO = 512
TASK_TYPE: Mapping[Kind, TaskType] = {
    "classification": "SEQ_CLS",
    "multilabel": "SEQ_CLS",
    "generation": "CAUSAL_LM",
    "embedding": "FEATURE_EXTRACTION",
}


@dataclass(frozen=True)
class Network:
    """The model under PEFT, and where its parts are.

    Base parameters are frozen in the compute dtype, trainable ones are float32.
    """

    model: Any
    config: AdapterConfig
    pooling: Pooling | None
    dtype: torch.dtype

    @property
    def inner(self) -> Any:
        """The transformers model with the LoRA layers in it."""
        return self.model.get_base_model()

    @property
    def head(self) -> nn.Module:
        """The module that makes logits over the vocabulary; only decoders for generation have it."""
        head: nn.Module = self.inner.get_output_embeddings()
        return head

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def classify(self, batch: Batch) -> Tensor:
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

    def generate_logits(self, batch: Batch) -> Tensor:
        """Return logits over the vocabulary, [rows, columns, vocabulary] unless a hook selects positions."""
        result = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        logits: Tensor = result.logits
        return logits

    def embed(self, batch: Batch) -> Tensor:
        """Return the pooled last hidden states [sequences, hidden] in float32."""
        assert self.pooling is not None, "an embedding task has one"
        states = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **self._no_cache)[0]
        return pool_rows(states, batch.lengths, self.pooling)

    @property
    def _no_cache(self) -> dict[str, bool]:
        """Keep decoders from keeping keys and values; encoders know no such option."""
        return {"use_cache": False} if hasattr(self.inner.config, "use_cache") else {}

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the network is the bare base."""
        bare: AbstractContextManager[None] = self.model.disable_adapter()
        return bare

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors under PEFT's saved key names."""
        # "auto" would ask the Hub whether the vocabulary changed.
        saved: dict[str, Tensor] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return saved


def build_network(job: TrainingJob, tokenizer: PreTrainedTokenizerBase, longest: int, device: torch.device) -> Network:
    """Load the base and put a fresh adapter on it; `longest` is the longest row in tokens.

    All randomness comes from the recipe's seed. Raises ConfigError for targets or layers the base does not have, and
    BaseError where the base cannot be used so.
    """
    lora, kind = job.recipe.lora, job.spec.kind
    dtype = compute_dtype(job.recipe.training.precision, device.type)
    attention = "eager" if longest <= EAGER_UP_TO else "sdpa"
    torch.manual_seed(job.recipe.training.seed)
    if kind in ("generation", "embedding"):
        model = load_backbone(job.base, dtype, device=str(device), attention=attention)
        if kind == "embedding":
            # Without its language-model head, so that the tensors are called as PEFT finds them on an AutoModel.
            model = getattr(model, model.base_model_prefix, model)
    else:
        model = load_classifier(
            job.base, len(job.spec.labels), kind == "multilabel", dtype, attention, tokenizer.pad_token_id
        )
    model.requires_grad_(requires_grad=False)
    heads = _heads(model)
    targets = choose_targets(model, lora.targets, lora.layers, heads)
    config = _adapter_config(job, without_layers(model, targets) if kind == "embedding" else targets, heads)
    pooling = _pooling(job, model)
    torch.manual_seed(job.recipe.training.seed)
    with warnings.catch_warnings():
        # PEFT asks every model under a name that newer transformers call deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = get_peft_model(model, _peft_config(config), autocast_adapter_dtype=True)
    network = Network(adapted, config, pooling, dtype)
    _trainable_in_float32(network)
    return network


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


def _adapter_config(job: TrainingJob, targets: Targets, heads: tuple[str, ...]) -> AdapterConfig:
    lora = job.recipe.lora
    task_type = TASK_TYPE[job.spec.kind]
    return AdapterConfig(
        base_model=job.base.public_id,
        task_type=task_type,
        rank=lora.rank,
        alpha=2.0 * lora.rank if lora.alpha is None else lora.alpha,
        targets=targets.names,
        layers=targets.layers,
        rslora=lora.variant == "rslora",
        dropout=lora.dropout,
        modules_to_save=heads if task_type == "SEQ_CLS" else (),
        fan_in_fan_out=targets.fan_in_fan_out,
        rank_pattern={},
        alpha_pattern={},
    )


def _peft_config(config: AdapterConfig) -> LoraConfig:
    return LoraConfig(
        task_type=config.task_type,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        layers_to_transform=None if config.layers is None else list(config.layers),
        use_rslora=config.rslora,
        modules_to_save=list(config.modules_to_save) or None,
        fan_in_fan_out=config.fan_in_fan_out,
    )


def _trainable_in_float32(network: Network) -> None:
    """Keep what learns in float32, and hand the head its input so; PEFT casts the LoRA matrices and theirs itself."""
    for parameter in network.trainable.values():
        parameter.data = parameter.data.float()
    for name in network.config.modules_to_save:
        getattr(network.inner, name).register_forward_pre_hook(_to_float32)


def _to_float32(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)
