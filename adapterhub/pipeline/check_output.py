"""Whether the rule for a recipe's output allows what its rows say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.data.example import Example
from adapterhub.data.output import Output
from adapterhub.data.tokens import encode_completion

if TYPE_CHECKING:
    from adapterhub.runtime.grammar import CompiledGrammar


def output_warnings(output: Output, tokenizer: Any, splits: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Say of which rows the right completion is not allowed: the task would learn what it may never say.

    The grammar judges, which is stricter than a validator of the schema: properties come in the schema's order.
    """
    from adapterhub.runtime.grammar import Grammars

    ends = frozenset({tokenizer.eos_token_id} - {None})
    grammar = Grammars(tokenizer, len(tokenizer), ends).get(output)
    for name, rows in splits.items():
        wrong = [(row, found) for row in rows if (found := _refusal(grammar, tokenizer, row))]
        if wrong:
            row, found = wrong[0]
            count = f"{len(wrong)} completion{'' if len(wrong) == 1 else 's'}"
            yield f"{name}: {count} that output does not allow, the first at {row.where}: {found}"


def _refusal(grammar: CompiledGrammar, tokenizer: Any, row: Example) -> str:
    """Return where the right completion of a row leaves the grammar; empty where it does not."""
    for completion in row.completions[:1]:
        tokens = encode_completion(tokenizer, completion)[:-1]  # without EOS
        taken = grammar.refused(tokens)
        if taken is not None:
            fine, rest = (tokenizer.decode(part) for part in (tokens[:taken], tokens[taken:]))
            return f"after {fine[-40:]!r} it may not {f'go on with {rest[:20]!r}' if rest else 'end'}"
    return ""
