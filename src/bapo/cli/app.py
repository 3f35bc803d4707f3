"""The `bapo` command and what all of its subcommands share."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from bapo.cli import anchor, data, data_files, evaluate, generate, lm_eval, personalize, train
from bapo.errors import BapoError

app = typer.Typer(
    name="bapo",
    help="Personalize a language model to preferences without making it forget what it knew.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("personalize")(personalize.personalize)
app.command("data")(data.data)
app.command("anchor")(anchor.anchor)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("generate")(generate.generate)
app.command("data-files")(data_files.data_files)
app.command("lm-eval", add_help_option=False, context_settings=lm_eval.EVERYTHING)(lm_eval.lm_eval)


def main() -> None:
    """Run the command. What the user can mend is one sentence and exit code 2, never a traceback.

    An error of ours shows its traceback and ends with 2 as well: 1 is what a gate says of a model.
    """
    try:
        app()
    except BapoError as error:
        if os.environ.get("BAPO_DEBUG"):
            traceback.print_exc()
        print(f"bapo: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nbapo: stopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(2)
