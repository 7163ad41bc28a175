"""What a recipe's adapter will meet outside of this program: said before an hour of training, not after."""

from __future__ import annotations

from adapterhub.recipe import Recipe

# The largest --max-lora-rank that vLLM takes.
_VLLM_MOST_RANK = 512


def serving_warnings(recipe: Recipe) -> list[str]:
    """Return what of the recipe other engines refuse; this program serves all that a recipe can say."""
    lora, found = recipe.lora, []
    if lora.variant == "dora":
        found.append("lora.variant is 'dora': this program serves it exactly, but vLLM refuses it")
    rank = max([lora.rank, *lora.rank_pattern.values()]) * (2 if lora.init == "pissa" else 1)
    if rank > _VLLM_MOST_RANK:
        doubled = " (pissa is published with twice its rank)" if lora.init == "pissa" else ""
        found.append(f"the adapter will have rank {rank}{doubled}; vLLM takes ranks up to {_VLLM_MOST_RANK}")
    return found
