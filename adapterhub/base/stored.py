"""The Llama family straight from a base's files: what a transformers model would hold, without transformers' modules.

Importing these takes longer than all else that answers one question. Whatever is not read here bit for bit as
transformers reads it is refused, and transformers reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from adapterhub.errors import BaseError

from .architecture import read_config
from .llama import LlamaShape, LlamaWeights, read_shape
from .record import Base
from .tensors import StoredTensor, stored_tensors

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ROPE = {"rope_type", "rope_theta"}
# What a config may say, and may call null: all that shapes these networks, and what does not. Anything else may change
# what is computed, as `transformers_weights` does.
_SAID = """
    architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim hidden_act rms_norm_eps max_position_embeddings tie_word_embeddings attention_bias
    mlp_bias sliding_window use_sliding_window max_window_layers layer_types rope_parameters rope_theta rope_scaling
    initializer_range attention_dropout pretraining_tp use_cache torch_dtype dtype transformers_version bos_token_id
    eos_token_id pad_token_id is_llama_config rope_interleaved transformers.js_config _name_or_path
"""
_NULL = """
    head_dim sliding_window layer_types rope_parameters rope_scaling torch_dtype dtype bos_token_id
    eos_token_id pad_token_id architectures
"""
_KEYS, _MAY_BE_NULL = frozenset(_SAID.split()), frozenset(_NULL.split())
# Angles that old checkpoints stored beside the weights; they are computed.
_COMPUTED = ".rotary_emb.inv_freq"


def stored_weights(base: Base, dtype: torch.dtype, device: str | torch.device = "cpu") -> LlamaWeights:
    """Return the weights of a base, each read when it is taken. Raises ValueError where transformers has to read it.

    BaseError where a file is no safetensors file or is cut short.
    """
    config = read_config(base.path)
    shape = read_shape(config)
    if unknown := sorted(name for name in config if name not in _KEYS):
        raise ValueError(f"its config says {', '.join(unknown)}")
    if nothing := sorted(name for name, value in config.items() if value is None and name not in _MAY_BE_NULL):
        raise ValueError(f"its config says nothing of {', '.join(nothing)}")
    if config.get("rope_parameters") and config.get("rope_scaling"):
        raise ValueError("its config says two things of rotary embeddings")
    plain = shape.rope["rope_type"] == "default" and shape.rope.keys() == _ROPE
    if not plain or not isinstance(shape.rope["rope_theta"], int | float):
        raise ValueError(f"rotary embeddings of type {shape.rope['rope_type']!r} are scaled by transformers")
    if not shape.silu:
        raise ValueError(f"gates of {shape.act!r} are transformers'")
    # An output layer stored beside the table it is said to be tied to may be another: then it counts.
    tensors = {tensor.name: tensor for tensor in stored_tensors(base.path) if not tensor.name.endswith(_COMPUTED)}
    if {name: tensor.shape for name, tensor in tensors.items()} != shape.tensors():
        raise ValueError("its files hold other weights than its family's")
    if wrong := [tensor.name for tensor in tensors.values() if not _is_plain(tensor)]:
        raise ValueError(f"{wrong[0]!r} is stored in numbers of another kind")
    return LlamaWeights(shape, _StoredTensors(tensors, dtype, device), _angles(shape, dtype, device), F.silu)


class _StoredTensors:
    """The weights in a base's files, read whole each time they are asked for: nothing stays mapped."""

    def __init__(self, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, device: str | torch.device) -> None:
        self._tensors, self._dtype, self._device = tensors, dtype, device

    def get(self, name: str) -> Tensor:
        """Return a tensor in the dtype to compute in."""
        stored = self._tensors[name]
        data = bytearray(stored.end - stored.start)
        with stored.file.open("rb") as file:
            file.seek(stored.start)
            if file.readinto(data) != len(data):
                raise BaseError(f"{stored.file} ends inside tensor {name!r}; fetch the base again")
        read = torch.frombuffer(data, dtype=_DTYPES[stored.dtype]).view(stored.shape)
        return read.to(self._device, self._dtype)

    def free(self, prefix: str) -> None:
        """Nothing is held."""


def _is_plain(tensor: StoredTensor) -> bool:
    """Say whether a tensor's bytes are as many as its shape takes in a dtype that is computed in."""
    return tensor.dtype in _DTYPES and tensor.end - tensor.start == tensor.elements * _DTYPES[tensor.dtype].itemsize


def _angles(shape: LlamaShape, dtype: torch.dtype, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [positions, dim] of plain rotary embeddings (Su et al. 2021), made as transformers does.

    The frequencies come from the CPU, the angles are made where they are used.
    """
    steps = torch.arange(0, shape.dim, 2, dtype=torch.float) / shape.dim
    frequencies = (1.0 / (float(shape.rope["rope_theta"]) ** steps)).to(device)
    half = torch.arange(shape.positions, device=device).float()[:, None] * frequencies
    whole = torch.cat([half, half], dim=-1)
    return whole.cos().to(dtype), whole.sin().to(dtype)
