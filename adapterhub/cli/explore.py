"""`adapterhub try`: one text at a time, answered side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import AdapterHubError, UsageError

from .base import base_progress
from .shared import JsonOption, RegistryOption, console, emit, names_in

if TYPE_CHECKING:
    from rich.console import Console

    from adapterhub.labeling.prompts import PromptVoter, VoterFile
    from adapterhub.pipeline.explore import Explorer, Opinion
    from adapterhub.registry.store import Registry

_HELP = """A line is a text to ask about. Lines that begin with a colon:
  :gold LABEL               keep the last text with its right label (--gold FILE)
  :prompt NAME TEMPLATE     ask this prompt too, e.g.  :prompt mood {text} All in all it was
  :keep NAME                keep that prompt as a voter (--voters FILE)
  :quit                     end (so does Ctrl-D)"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("try")(try_command)


def try_command(
    refs: Annotated[list[str] | None, typer.Argument(metavar="[REF]...", help="Adapters to ask.")] = None,
    voters: Annotated[
        Path | None,
        typer.Option("--voters", metavar="FILE", help="YAML file of prompts to ask, and to keep prompts in."),
    ] = None,
    shots: Annotated[
        Path | None, typer.Option("--shots", metavar="FILE", help="Labelled rows, some of which the base is shown.")
    ] = None,
    few_shot: Annotated[int, typer.Option("--few-shot", min=1, metavar="K", help="How many of --shots.")] = 8,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="The labels there are; else those of adapters, voters or rows."),
    ] = None,
    gold: Annotated[
        Path | None, typer.Option("--gold", metavar="FILE", help="JSONL file to keep texts with right labels in.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base to ask; else that of the first adapter or of the voters.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the bare base, prompts and adapters about one text after another, and see their answers side by side.

    Texts come from the terminal, or one a line from standard input. :help says how to keep what you like.
    """
    from adapterhub.base.source import open_base
    from adapterhub.data.files import read_examples
    from adapterhub.labeling.prompts import read_voters
    from adapterhub.pipeline.explore import Explorer
    from adapterhub.registry.store import Registry
    from adapterhub.runtime.hub import AdapterHub

    file = read_voters(voters) if voters is not None and voters.exists() else None
    names = names_in(labels)
    if len(names) == 1:
        raise UsageError(f"--labels names {names[0]!r} alone; name two labels or more")
    store = Registry(Registry.locate(registry))
    with base_progress() as progress:
        opened = open_base(_base_name(base, file, refs or [], store), progress=progress)
    with AdapterHub(opened, store) as hub:
        rows = [] if shots is None else list(read_examples(shots, "classification"))
        explorer = Explorer(hub, refs or [], () if file is None else file.voters, rows, few_shot, names)
        _Talk(explorer, console(), voters, gold, as_json=as_json).run(_lines())


def _base_name(base: str | None, file: VoterFile | None, refs: Sequence[str], store: Registry) -> str:
    """Return who is asked: the base that is named, else that of the first adapter, of the voters, or the default."""
    if base is not None:
        return base
    if refs:
        return store.resolve(refs[0]).base
    from adapterhub.base.catalog import DEFAULT_BASE

    return file.base if file is not None and file.base is not None else DEFAULT_BASE


class _Talk:
    """What is typed, line by line."""

    def __init__(
        self, explorer: Explorer, screen: Console, voters: Path | None, gold: Path | None, *, as_json: bool
    ) -> None:
        self._explorer, self._screen, self._voters, self._gold = explorer, screen, voters, gold
        self._as_json = as_json
        self._last: str | None = None
        self._prompts: dict[str, PromptVoter] = {}

    def run(self, lines: Iterable[str]) -> None:
        for line in lines:
            text = line.strip()
            if text in (":quit", ":q"):
                return
            try:
                if text.startswith(":"):
                    self._obey(text)
                elif text:
                    self._ask(text)
            except AdapterHubError as error:
                self._say(f"Error: {error}")

    def _ask(self, text: str) -> None:
        self._last = text
        opinions: list[Opinion] = []
        for each in self._explorer.ask(text):
            opinions.append(each)
            if not self._as_json:
                chance = "" if each.chance is None else f"  {each.chance:.2f}"
                self._say(f"  {each.who:<28} {each.wrong or each.answer or '(nothing)'}{chance}")
        if self._as_json:
            emit({"text": text, "answers": [each.to_record() for each in opinions]})

    def _obey(self, line: str) -> None:
        from adapterhub.pipeline.explore import save_gold, save_voter

        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == ":gold":
            if self._gold is None or self._last is None or not rest:
                raise UsageError(":gold LABEL keeps the last text; ask about one first, and name a file with --gold")
            self._explorer.check_label(rest)
            save_gold(self._gold, self._last, rest)
            self._say(f"kept in {self._gold}: {rest}")
        elif command == ":prompt":
            self._prompt(*rest.partition(" ")[::2])
        elif command == ":keep":
            if self._voters is None or rest not in self._prompts:
                raise UsageError(":keep NAME keeps a prompt of :prompt; name a file with --voters")
            save_voter(self._voters, self._prompts[rest])
            self._say(
                f"kept in {self._voters}: {rest}; on many rows it is calibrated by all of them, here by empty text"
            )
        else:
            self._say(_HELP)

    def _prompt(self, name: str, template: str) -> None:
        voter = self._explorer.prompt(name, template.strip())
        self._prompts[name] = voter
        self._explorer.add(voter)
        if self._last is not None:
            self._ask(self._last)

    def _say(self, text: str) -> None:
        self._screen.print(text, markup=False, highlight=False)


def _lines() -> Iterator[str]:
    if sys.stdin is None:
        raise UsageError("there is nothing to read: type texts, or pipe them in")
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    console().print("Type a text; :help for more, :quit to end.", markup=False)
    while True:
        try:
            yield console().input("> ")
        except EOFError:
            return
