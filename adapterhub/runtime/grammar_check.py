"""A process of its own that reads a grammar and says what is wrong with it.

Some schemas of a few lines take the library minutes or all memory, and a thread cannot be stopped; a process can. It
imports the library and nothing else, and never sees the base's tokenizer.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Write what is wrong with the grammar on stdin to stdout; nothing where it is fine."""
    from llguidance import LLMatcher

    sys.stdout.write(LLMatcher.validate_grammar(sys.stdin.read()))


if __name__ == "__main__":  # pragma: no cover - in a process of its own
    main()
