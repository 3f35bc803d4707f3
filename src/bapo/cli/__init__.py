"""The command line: one thin file per command."""

from bapo.cli.ending import main

__all__ = ["main"]
