"""What a load asks and when: models by popularity, prompts of made-up words, arrivals by chance, all from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# Short and frequent, so that most tokenizers make about one token of each.
_TEXT = """
    the of and to in is it you that was for on are with as his they be at one have this from or had by hot but some
    what there we can out other were all your when up use word how said an each she which do their time if will way
    about many then them would write like so these her long make thing see him two has look more day could go come
    did my sound no most number who over know water than call first people may down side been now find any new work
    part take get place made live where after back little only round man year came show every good me give our under
"""
_WORDS = tuple(_TEXT.split())
_SPREAD = 0.25


class Popularity(StrEnum):
    """How requests spread over the models."""

    UNIFORM = "uniform"
    ZIPF = "zipf"
    ONE = "one"


@dataclass(frozen=True)
class Ask:
    """One request: its model, its path below `/v1`, and its body."""

    model: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """What is asked. The same workload always yields the same requests in the same order.

    `zipf` gives the k-th model of the list 1/k of the first one's requests (Zipf's law with exponent 1); `one` asks the
    first alone. Prompts have `prompt_words` words, a quarter more or less, drawn anew for each, so that no cache of
    prompts helps. `ignore_eos` (vLLM's field) asks for exactly `max_tokens`; without it an answer may be shorter.
    """

    models: tuple[str, ...]
    popularity: Popularity = Popularity.ZIPF
    prompt_words: int = 32
    max_tokens: int = 32
    chat: bool = False
    ignore_eos: bool = False
    seed: int = 0

    def shares(self) -> list[float]:
        """Return the part of all requests that each model gets; the sum is 1."""
        count = len(self.models)
        if self.popularity is Popularity.ONE:
            weights = [1.0] + [0.0] * (count - 1)
        elif self.popularity is Popularity.UNIFORM:
            weights = [1.0] * count
        else:
            weights = [1 / rank for rank in range(1, count + 1)]
        return [weight / sum(weights) for weight in weights]

    def asks(self) -> Iterator[Ask]:
        """Yield requests without end."""
        draw = random.Random(f"asks {self.seed}")  # noqa: S311 (no secret)
        shares = self.shares()
        least, most = round(self.prompt_words * (1 - _SPREAD)), round(self.prompt_words * (1 + _SPREAD))
        while True:
            (model,) = draw.choices(self.models, shares)
            prompt = " ".join(draw.choices(_WORDS, k=draw.randint(max(1, least), most)))
            yield self._ask(model, prompt)

    def _ask(self, model: str, prompt: str) -> Ask:
        said = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        body = {
            "model": model,
            **said,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.ignore_eos else {}),
        }
        return Ask(model, "chat/completions" if self.chat else "completions", body)


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yield when requests arrive, in seconds from the beginning: a Poisson process of `rate` requests a second."""
    draw = random.Random(f"arrivals {seed}")  # noqa: S311
    now = 0.0
    while True:
        now += draw.expovariate(rate)
        yield now
