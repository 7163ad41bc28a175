"""What a rule for answers costs: its tokenizer, compiling it, and the mask of each token.

    python benchmarks/structured.py [--rounds 20]

On the tokenizer of `smollm2-135m-instruct`, without the base: the time to make the library's form of the tokenizer
(once a process), to check a rule in a process of its own and to compile it (once a rule), and the time that one token
of an answer takes the engine's thread: the mask as a tensor, ruled out of the logits, and going on from the token.
Answers are texts that the rule allows, given. Both wall and processor time, since the second does not know who else
used the core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from workload import machine, print_table

from adapterhub.base.load import load_tokenizer
from adapterhub.base.source import open_base
from adapterhub.data.output import Output
from adapterhub.runtime.grammar import Grammars, check_grammar, grammar_text

ORDER = {
    "type": "object",
    "properties": {"colour": {"type": "string"}, "item": {"type": "string"}, "quantity": {"type": "integer"}},
    "required": ["item"],
    "additionalProperties": False,
}
LABELS = [f"label number {number}" for number in range(200)]
RULES: dict[str, tuple[Output, str]] = {
    "3 fields": (Output.json(ORDER), '{"colour": "blue", "item": "mugs", "quantity": 12}'),
    "any object": (Output.json({"type": "object"}), '{"a": {"b": [1, null, "text of some length"]}}'),
    "list of 20 orders": (
        Output.json({"type": "array", "items": ORDER}),
        json.dumps([{"colour": "red", "item": f"mug {number}", "quantity": number} for number in range(20)]),
    ),
    "200 choices": (Output.choices(LABELS), LABELS[117]),
    "expression": (Output.regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"), "2026-01-31"),
}


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what `call` returns, and the milliseconds of wall and of processor it took."""
    wall, processor = time.perf_counter(), time.process_time()
    found = call()
    return found, (time.perf_counter() - wall) * 1e3, (time.process_time() - processor) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    base = open_base("smollm2-135m-instruct")
    tokenizer = load_tokenizer(base)
    size = len(tokenizer)
    grammars = Grammars(tokenizer, size, frozenset({tokenizer.eos_token_id}))
    _, wall, processor = timed(lambda: grammars.get(Output.regex("a")))
    print(machine())
    print(f"first rule, with the tokenizer: {wall:.0f} ms, of the processor {processor:.0f} (the check's not counted)")
    rows = []
    for name, (output, text) in RULES.items():
        source = grammar_text(output)
        _, checking, _ = timed(lambda source=source, output=output: check_grammar.__wrapped__(source, output))
        grammar, compiling, _ = timed(lambda source=source, output=output: grammars._compile(source, output))
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert grammar.refused(tokens) is None, name
        first, later = [], []
        for number in range(rounds):
            logits = torch.randn(size)
            place = grammar.start()
            for token in tokens:
                _, wall, processor = timed(lambda: torch.where(place.allowed(), logits, float("-inf")).argmax())  # noqa: B023
                _, more, most = timed(lambda: place.take(token))  # noqa: B023
                (first if number == 0 else later).append((wall + more, processor + most))
        rows.append(
            (
                name,
                f"{checking:.0f}",
                f"{compiling:.1f}",
                f"{1e3 * median(wall for wall, _ in first):.0f}",
                f"{1e3 * max(wall for wall, _ in first):.0f}",
                f"{1e3 * median(wall for wall, _ in later):.0f}",
                f"{1e3 * median(processor for _, processor in later):.0f}",
            )
        )
    head = (
        "rule",
        "check, ms",
        "compile, ms",
        "token µs, first answer",
        "its worst",
        "token µs, later",
        "of the processor",
    )
    print_table(head, rows)


if __name__ == "__main__":
    main()
