"""Commands only: parse, call, print. Heavy rooms are imported inside the commands, so that --help is quick."""

from groundup.cli import design, ladder, models, outcome, planning, running, verifying  # noqa: F401  (each adds its commands)
from groundup.cli.app import app, main

__all__ = ["app", "main"]
