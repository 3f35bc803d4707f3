"""`bapo lm-eval`: the harness's own command line, with our scorer as one of its models."""

from __future__ import annotations

import sys

import typer

EVERYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with --model bapo: lm-eval --model bapo --tasks piqa (see lm-eval --help)."""
    from bapo.evaluation.harness import main

    sys.argv = ["lm-eval", *context.args]
    main()
