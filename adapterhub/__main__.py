"""`python -m adapterhub`."""

from adapterhub.cli.main import run

run()
