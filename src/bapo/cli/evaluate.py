"""`bapo evaluate` and `bapo compare`: what adapters learned, how far they drifted, and what they forgot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bapo.cli import options
from bapo.cli.comparison import print_comparison
from bapo.errors import BapoError
from bapo.registry import names

if TYPE_CHECKING:
    from bapo.evaluation import Asked, BenchmarkPlan
    from bapo.jobs import Recipe
    from bapo.jobs.movement import MovementPlan

OTHER_TOPICS = "starter:concise"
FAILED, UNCLEAR = 1, 3
"""Exit codes of the gate beside 0; 2 is that of every error."""

Benchmarks = Annotated[
    str | None,
    typer.Option(
        "--benchmarks",
        "-b",
        help=f"all, or some of {','.join(names('benchmarks'))}.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Questions of each benchmark; the same seeded sample for all models.")]
Ask = Annotated[
    Literal["harness", "text", "letter"],
    typer.Option(
        help="How questions are asked: harness (as lm-eval does), text (the choices' likelihood), "
        "letter (in the chat format)."
    ),
]
Gate = Annotated[
    bool, typer.Option("--gate", help="Exit with 1 if too much was lost or too little learned, 3 if that is unclear.")
]
Budget = Annotated[float, typer.Option(help="Points of the forgetting score that may be lost.")]
LeastAccuracy = Annotated[
    float | None, typer.Option(help="With --gate: percent of held-out pairs that must be right; none by default.")
]
Show = Annotated[Literal["lost", "gained"] | None, typer.Option(help="Print the questions that were lost, or gained.")]
Divergence = Annotated[
    int,
    typer.Option(
        help="Measure how far adapters move the distribution of next tokens, along responses that the reference "
        "samples to so many held-out prompts and so many of other topics; 0 for not at all."
    ),
]
OtherTopics = Annotated[str, typer.Option(help="With --divergence: preferences whose prompts are the other topics.")]
Text = Annotated[Path | None, typer.Option(help="A text file whose cross-entropy is taken before and after.")]
Records = Annotated[
    Path | None, typer.Option(help="Where answers and records are kept; the user's cache folder by default.")
]
QuestionSeed = Annotated[int, typer.Option(help="Seed of the sample that --limit draws.")]
Evaluated = Annotated[
    str | None, typer.Option("--preferences", "-p", help="The preferences; the same names as for personalize.")
]


def evaluate(
    context: typer.Context,
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Adapter folders, each trained on the same model.")
    ] = None,
    source: Evaluated = None,
    benchmarks: Benchmarks = None,
    limit: Limit = None,
    question_seed: QuestionSeed = 0,
    ask: Ask = "harness",
    against: Annotated[str, typer.Option(help="What changes are counted from: base, or an adapter.")] = "base",
    prompt_only: Annotated[
        str | None,
        typer.Option(help="Also the untrained model with these words as its system prompt; 'source' takes -p's own."),
    ] = None,
    gate: Gate = False,
    budget: Budget = 1.0,
    least_accuracy: LeastAccuracy = None,
    show: Show = None,
    divergence: Divergence = 0,
    other_topics: OtherTopics = OTHER_TOPICS,
    text: Text = None,
    records: Records = None,
    model: options.Model = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    held_out: options.HeldOut = None,
    split_seed: options.SplitSeed = None,
    anchored_store: options.AnchoredStore = None,
    data_folder: options.DataFolder = None,
    plain: options.Plain = False,
    reference_adapter: options.ReferenceAdapter = None,
    trust_remote_code: options.TrustRemoteCode = False,
    recipe: options.RecipeName = None,
    settings: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Reward accuracy and drift on held-out prompts, and knowledge and alignment before and after.

    Preferences are evaluated when -p names them or no benchmarks are asked. Answers to benchmarks are kept: asking
    again is instant, and a stopped evaluation goes on.
    """
    first = None if against == "base" else against
    wanted = options.recipe_of(context, as_trained=[*([first] if first else []), *(adapters or [])])
    shown = Shown(budget, show, gate, as_json, least_accuracy, records)
    movement = _movement(divergence, other_topics, text)
    plan = _plan(wanted, benchmarks, limit, ask, records, question_seed)
    _evaluate(wanted, first, adapters or [], prompt_only, plan, source is not None or plan is None, movement, shown)


def compare(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="An adapter folder.")],
    second: Annotated[str, typer.Argument(help="Another one; changes are counted from the first to it.")],
    source: Evaluated = None,
    benchmarks: Benchmarks = None,
    limit: Limit = None,
    question_seed: QuestionSeed = 0,
    ask: Ask = "harness",
    gate: Gate = False,
    budget: Budget = 1.0,
    least_accuracy: LeastAccuracy = None,
    show: Show = None,
    divergence: Divergence = 0,
    other_topics: OtherTopics = OTHER_TOPICS,
    text: Text = None,
    records: Records = None,
    model: options.Model = None,
    precision: options.Precision = None,
    kernels: options.Kernels = None,
    held_out: options.HeldOut = None,
    split_seed: options.SplitSeed = None,
    anchored_store: options.AnchoredStore = None,
    data_folder: options.DataFolder = None,
    plain: options.Plain = False,
    reference_adapter: options.ReferenceAdapter = None,
    trust_remote_code: options.TrustRemoteCode = False,
    recipe: options.RecipeName = None,
    settings: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Two adapters of one model, say of different objectives, on the same prompts and questions."""
    wanted = options.recipe_of(context, as_trained=[first, second])
    shown = Shown(budget, show, gate, as_json, least_accuracy, records)
    movement = _movement(divergence, other_topics, text)
    plan = _plan(wanted, benchmarks, limit, ask, records, question_seed)
    _evaluate(wanted, first, [second], None, plan, source is not None or plan is None, movement, shown)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is printed of an evaluation, and how it ends.

    Attributes:
        budget: points that may be lost.
        items: lost or gained, to print those questions; None prints none.
        gate: whether the exit code tells if too much was lost.
        as_json: one object instead of tables.
        least_accuracy: percent of held-out pairs that the gate asks for; None for none.
        records: where records are kept; None for the user's cache folder.
    """

    budget: float
    items: Literal["lost", "gained"] | None
    gate: bool
    as_json: bool
    least_accuracy: float | None = None
    records: Path | None = None

    def __post_init__(self) -> None:
        if not self.budget >= 0:
            raise BapoError(f"--budget is {self.budget:g}: it is the points that may be lost, 0 or more.")
        if self.least_accuracy is not None and not (self.gate and 0 < self.least_accuracy <= 100):
            raise BapoError("--least-accuracy is percent of held-out pairs, more than 0, and needs --gate.")


def _plan(
    recipe: Recipe, benchmarks: str | None, limit: int | None, ask: Asked, records: Path | None, question_seed: int
) -> BenchmarkPlan | None:
    options.check_numbers(limit=limit, question_seed=question_seed)
    from bapo.cli.console import quieten_libraries

    quieten_libraries()  # what comes now imports them
    if benchmarks is None:
        return None
    from bapo.evaluation import BenchmarkPlan, benchmark_names, local_folder

    return BenchmarkPlan(
        benchmark_names(benchmarks),
        limit=limit,
        seed=question_seed,
        asked=ask,
        data_folder=local_folder(recipe.preferences.data_folder),
        answers_folder=records,
    )


def _movement(divergence: int, other_topics: str, text: Path | None) -> MovementPlan | None:
    if not divergence and text is None:
        return None
    from bapo.jobs.movement import MovementPlan

    if divergence < 0:
        raise BapoError(f"--divergence is {divergence}: name a number of prompts, or leave it out.")
    return MovementPlan(divergence, other_topics, text=text)


def _evaluate(
    recipe: Recipe,
    first: str | None,
    adapters: list[str],
    prompt_only: str | None,
    plan: BenchmarkPlan | None,
    preferences: bool,
    movement: MovementPlan | None,
    shown: Shown,
) -> None:
    """Evaluate the base or ``first``, the prompt-only rival and the adapters; print; end as the gate says."""
    from dataclasses import asdict

    from bapo.cli.console import live_progress, out, print_json
    from bapo.files import write_text
    from bapo.jobs import stages
    from bapo.reporting.page import render
    from bapo.reporting.pages import comparison_page

    named = list(dict.fromkeys([*([first] if first else []), *adapters]))
    stages.check(recipe, named)
    _check_gate(plan, preferences, [adapter for adapter in adapters if adapter != first], shown)
    if prompt_only is not None and preferences and recipe.preferences.plain:
        raise BapoError("--prompt-only needs prompts with turns, which --plain does away with: leave out one of them.")
    system = None if prompt_only is None else _in_words(recipe, prompt_only)
    with live_progress(quiet=shown.as_json) as on_progress:
        from bapo.jobs import Variant, evaluate
        from bapo.jobs.job import reference_name
        from bapo.jobs.variants import variants_of
        from bapo.results import PROMPT_ONLY

        variants = [Variant(reference_name(recipe))] if first is None else []
        variants += variants_of(named)
        if system is not None:
            variants.insert(1, Variant(PROMPT_ONLY, system=system))
        record = evaluate(
            recipe,
            variants,
            benchmarks=plan,
            preferences=preferences,
            movement=movement,
            budget=shown.budget,
            least_accuracy=None if shown.least_accuracy is None else shown.least_accuracy / 100,
            records=shown.records,
            on_progress=on_progress,
        )
    page = record.path.with_suffix(".html")
    write_text(page, render(comparison_page(record)))
    if shown.as_json:
        print_json({**asdict(record.content), "made_on": dict(record.made_from.made_on), "record": str(record.path)})
    else:
        print_comparison(record, shown.items)
        out.print(f"page in {page}", soft_wrap=True)
    if shown.gate:
        raise typer.Exit({"yes": FAILED, "unclear": UNCLEAR}.get(record.content.gate or "no", 0))


def _check_gate(plan: BenchmarkPlan | None, preferences: bool, others: list[str], shown: Shown) -> None:
    """Refuse a gate that has nothing to judge, and questions where none are asked."""
    if shown.least_accuracy is not None and not preferences:
        raise BapoError("--least-accuracy needs held-out prompts: name the preferences with -p.")
    judged = _asks_knowledge(plan) or shown.least_accuracy is not None
    if shown.gate and not (judged and others):
        raise BapoError(
            "--gate needs an adapter beside the one that it is compared with, and --benchmarks with some that count as "
            "knowledge, such as arc_challenge or all (hhh does not), or --least-accuracy."
        )
    if shown.items and (plan is None or shown.as_json):
        raise BapoError("--show prints questions of benchmarks: use it with --benchmarks and without --json.")


def _asks_knowledge(plan: BenchmarkPlan | None) -> bool:
    from bapo.evaluation import BENCHMARKS

    return plan is not None and any(BENCHMARKS[name].kind == "knowledge" for name in plan.names)


def _in_words(recipe: Recipe, prompt_only: str) -> str:
    from bapo.preferences import preference_in_words

    if not prompt_only.strip():
        raise BapoError("--prompt-only is empty: give the preference in words, or 'source' for -p's own.")
    if prompt_only != "source":
        return prompt_only
    words = preference_in_words(recipe.preferences.source)
    if words is None:
        raise BapoError(
            f"{recipe.preferences.source} does not say in words what is preferred: give --prompt-only a sentence."
        )
    return words
