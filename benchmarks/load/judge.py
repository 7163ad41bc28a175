"""Whether answers were right: each against the general network, row alone, in float32, without any cache of prompts.

A label's probability or a vector's element may differ by a stated tolerance. A text is right if it is what the
reference says, or differs only where tokens are as good as equal: each token's logit, as the reference sees the text
before it, lies within ε of the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapterhub import AdapterHub
from adapterhub.base.load import load_tokenizer
from adapterhub.data.task import PromptSpec, TaskSpec
from adapterhub.data.tokens import encode_input
from adapterhub.runtime.stream import Completion
from adapterhub.runtime.target import GenerationRequest, Target

from .tally import Asked, Tally
from .world import World

# Alternatives looked at where texts part, and how often they may part in one answer.
ALTERNATIVES = 8
PARTINGS = 6


@dataclass(frozen=True)
class Verdict:
    """How many different answers were judged, how many needed the rule of near ties, and what was wrong."""

    judged: int
    near_ties: int
    wrong: tuple[str, ...]


class Judge:
    """The reference, over the same registry.

    `epsilon` is in logits; `tolerance` is of probabilities, and of a vector as a part of its largest element.
    """

    def __init__(self, world: World, epsilon: float, tolerance: float) -> None:
        self._world, self._epsilon, self._tolerance = world, epsilon, tolerance
        self._hub = AdapterHub(
            world.base, world.registry, precision="float32", max_rows=1, resident=2, prefix_bytes=0, reference=True
        )
        self._tokenizer = load_tokenizer(world.base, require_pad=False)
        self._near = 0

    def close(self) -> None:
        """Let the reference go."""
        self._hub.close()

    def judge(self, tally: Tally, watch: Callable[[int, int], None] = lambda done, of: None) -> Verdict:
        """Compare everything that was said."""
        wrong, judged = [], 0
        for number, (asked, said) in enumerate(sorted(tally.said.items(), key=lambda each: repr(each[0])), 1):
            watch(number, len(tally.said))
            judged += len(said)
            right = self._texts(asked) if asked.route in ("chat", "text") else self._values(asked)
            wrong += [f"{asked}: {str(answer)[:200]}" for answer in said if not right(answer)]
        return Verdict(judged, self._near, tuple(wrong))

    def _target(self, asked: Asked) -> Target:
        return self._hub.target(f"{asked.task}@{asked.digest}" if asked.digest else asked.task)

    def _values(self, asked: Asked) -> Callable[[object], bool]:
        target = self._target(asked)
        if asked.route == "labels":
            probs = next(self._hub.answers(target, [asked.prompt])).probs or {}
            expected, limit = list(probs.values()), self._tolerance
        else:
            expected = next(self._hub.embeddings(target, [asked.prompt])).vector.tolist()
            limit = self._tolerance * max(map(abs, expected))

        def right(answer: object) -> bool:
            assert isinstance(answer, tuple)
            return (
                len(answer) == len(expected) and max(abs(a - b) for a, b in zip(answer, expected, strict=True)) <= limit
            )

        return right

    def _texts(self, asked: Asked) -> Callable[[object], bool]:
        target = self._target(asked)
        spec = target.spec if asked.route == "chat" else None
        plain = TaskSpec(
            "generation", self._world.base.fingerprint, self._world.base.context_length, prompt=PromptSpec()
        )
        fields = {"prompt": asked.prompt, "text": asked.prompt}
        prompt = tuple(encode_input(self._tokenizer, spec or plain, fields))
        first = self._say(target, prompt, asked.max_tokens)

        def right(answer: object) -> bool:
            if answer == first.text:
                return True
            found = self._parts(target, prompt, (), first, str(answer), asked.max_tokens, PARTINGS)
            self._near += found
            return found

        return right

    def _say(self, target: Target, tokens: tuple[int, ...], most: int) -> Completion:
        asked = GenerationRequest(token_ids=tokens, max_tokens=most, temperature=0.0, logprobs=ALTERNATIVES)
        return self._hub.generate(target, asked).result()

    def _parts(
        self,
        target: Target,
        prompt: tuple[int, ...],
        before: tuple[int, ...],
        told: Completion,
        answer: str,
        most: int,
        left: int,
    ) -> bool:
        """Say whether taking a near tie somewhere in `told`, which goes on from `before`, leads to the answer."""
        assert told.logprobs is not None
        for at, token in enumerate(told.logprobs):
            said = before + told.token_ids[:at]
            if not answer.startswith(self._whole(said)):
                return False
            best = max(each[2] for each in token.top)
            for _, other, logprob in token.top:
                if other == told.token_ids[at] or best - logprob > self._epsilon:
                    continue
                if self._leads(target, prompt, (*said, other), answer, most, left):
                    return True
        return False

    def _leads(
        self, target: Target, prompt: tuple[int, ...], said: tuple[int, ...], answer: str, most: int, left: int
    ) -> bool:
        if said[-1] in self._tokenizer.all_special_ids or len(said) == most:
            return self._decode(said) == answer
        if not left or not answer.startswith(self._whole(said)):
            return False
        told = self._say(target, prompt + said, most - len(said))
        if self._decode(said + tuple(told.token_ids)) == answer:
            return True
        return self._parts(target, prompt, said, told, answer, most, left - 1)

    def _whole(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens but for an end that is no whole character yet."""
        return self._decode(tokens).rstrip("�")

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
