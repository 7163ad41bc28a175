"""The command line's root: which commands there are, and how errors leave it."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

import typer

from adapterhub.errors import AdapterHubError, UsageError

from .shared import console

# typer 0.29 carries its own copy of click, earlier ones use the package: take the class typer itself raises.
UsageProblem = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")

# In the order of the road from data to answer; each module adds its commands to the app.
GROUPS = (
    *("base", "recipe", "data", "label", "train", "improve", "sweep", "registry", "rebase"),
    *("explore", "predict", "evaluate", "serve", "bench", "keys", "hub"),
)


def create_app() -> typer.Typer:
    """Return the whole command line."""
    app = typer.Typer(
        name="adapterhub",
        help="Many tasks on one frozen foundation model: train small LoRA adapters, version them, serve them together.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        show_version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", is_eager=True, callback=_show_version
        ),
    ) -> None:
        # Nothing to do: every command does its own work.
        pass

    for name in GROUPS:
        importlib.import_module(f"adapterhub.cli.{name}").register(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:  # Here and not in the root, which is only called when a command follows.
        sys.stdout.write(f"adapterhub {version('adapterhub')}\n")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 0 for success, 1 for an error, 2 for a wrong call, 130 for Ctrl-C."""
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        result = create_app()(arguments, standalone_mode=False)
        return int(result or 0)
    except AdapterHubError as error:
        console().print(f"Error: {error}", style="red", markup=False, highlight=False)
        return 2 if type(error) is UsageError else 1
    except (KeyboardInterrupt, typer.Abort):
        console().print("Interrupted.", markup=False)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python would complain once more when it flushes at exit.
        sys.stdout = None
        return 0
    except OSError as error:
        # No permission, no room, a folder where a file was meant: nothing of ours, and nothing a traceback explains.
        console().print(f"Error: {error}", style="red", markup=False, highlight=False)
        return 1
    except Exception as error:
        if not isinstance(error, UsageProblem):
            raise
        error.show(sys.stderr)  # type: ignore[attr-defined]
        return 2
