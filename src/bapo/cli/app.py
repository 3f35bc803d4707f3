"""The `bapo` command and what all of its subcommands share."""

from __future__ import annotations

import typer

from bapo.cli import (
    anchor,
    benchmark_files,
    data,
    delete,
    evaluate,
    generate,
    lm_eval,
    personalize,
    recipe,
    sample,
    selfcheck,
    study,
    theory,
    train,
)

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
app.command("sample")(sample.sample)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("generate")(generate.generate)
app.command("selfcheck")(selfcheck.selfcheck)
app.command("delete")(delete.delete)
app.add_typer(study.app, name="study")
app.command("theory")(theory.theory)
app.command("recipe")(recipe.recipe)
app.command("benchmark-files")(benchmark_files.benchmark_files)
app.command("lm-eval", add_help_option=False, context_settings=lm_eval.EVERYTHING)(lm_eval.lm_eval)
