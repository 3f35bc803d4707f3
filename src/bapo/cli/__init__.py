"""The command line: one thin file per command."""

from bapo.cli.app import main

__all__ = ["main"]
