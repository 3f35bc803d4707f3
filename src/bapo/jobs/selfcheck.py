"""The job that looks whether a model is scored and trained right where it is now: all checks of the library at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError, foreign
from bapo.jobs import stages
from bapo.jobs.recipe import Recipe
from bapo.preferences import prompt_text, read_preferences, response_text
from bapo.progress import OnProgress, silent
from bapo.results import Check, Deviation, Selfcheck

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bapo.anchoring import Probe
    from bapo.likelihood import ResponseScorer, TokenGroup, Verdict
    from bapo.likelihood.ways import Way
    from bapo.models import LoadedModel

SAMPLE = "starter:concise"
PROMPTS, RESPONSES, RESPONSE_TOKENS = 3, 2, 32
"""What is scored: the first prompts of the packaged preferences with some of their responses, cut."""

AS_TRAINED = 1e-2
"""Standard deviation of what is drawn for a fresh adapter's zeros, so that it computes something, as a trained one."""

_CHECKS = 10
"""How many checks there are of a model that the row fits."""

_PLACES = {
    "padded": "one batch with padding in front, as answers are generated",
    "packed": "one row, each response behind a prompt of its own",
    "shared": "a row for each prompt, its responses behind it",
    "grouped": "one row of all prompts with their responses, as in training",
}


def selfcheck(recipe: Recipe, adapter: str | None = None, on_progress: OnProgress = silent) -> Selfcheck:
    """Load a model as every command does, and look whether it is scored and trained right on this machine.

    Args:
        recipe: names the model and how it is computed.
        adapter: an adapter that is put on it and checked with it; None for a fresh one.
        on_progress: told how many checks are done.

    Raises:
        BapoError: the model or the adapter cannot be loaded, or the model gives no numbers.
    """
    stages.check(recipe, [adapter] if adapter else [])
    on_progress("loading the model", 0, 1)
    loaded = stages.load(recipe, adapter=adapter, trainable=adapter is not None)
    on_progress("loading the model", 1, 1)
    return examine(loaded, recipe, adapter, on_progress)


def examine(
    loaded: LoadedModel, recipe: Recipe, adapter: str | None = None, on_progress: OnProgress = silent
) -> Selfcheck:
    """`selfcheck` of a model that is in memory; without an adapter it gets a fresh one, and keeps it.

    Raises:
        BapoError: see `selfcheck`.
    """
    from bapo.anchoring import Probe
    from bapo.jobs.computed import how_it_is_computed, speed_ups
    from bapo.likelihood import ResponseScorer

    started = time.monotonic()
    scorer = ResponseScorer(loaded.model, loaded.kernels)
    checks: list[Check] = []
    groups: list[TokenGroup] = []
    facts: dict[str, str] = {}

    def all_checks() -> Iterator[Check]:
        yield _vocabulary(loaded)
        yield template_check(loaded)
        groups.extend(_sample(loaded, scorer))
        yield from _ways(scorer, groups, loaded.precision)
        probe = Probe.of(scorer, groups)
        facts.update(how_it_is_computed(loaded, scorer, recipe.model.precision, probe))
        yield from _in_training(loaded, scorer, groups, probe, fresh=adapter is None)

    for check in all_checks():
        checks.append(check)
        on_progress("checking", len(checks), max(len(checks), _CHECKS), check.name)
    responses = [response for group in groups for response in group.responses]
    return Selfcheck(
        model=loaded.name,
        adapter=adapter,
        facts=facts | speed_ups(loaded, scorer),
        checks=tuple(checks),
        sample=f"{sum(map(len, responses))} tokens of {len(responses)} responses to {len(groups)} prompts",
        seconds=time.monotonic() - started,
    )


def _vocabulary(loaded: LoadedModel) -> Check:
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    beyond = sorted((at, token) for token, at in loaded.tokenizer.get_vocab().items() if at >= rows)
    verdict = f"right: each of {len(loaded.tokenizer):,} tokens has its embedding"
    if beyond:
        verdict = f"WRONG: {len(beyond)} tokens have none, e.g. {beyond[0][1]!r}; texts that hold one are refused"
    return Check("vocabulary", "the tokenizer's tokens against the model's embeddings", not beyond, verdict)


def template_check(loaded: LoadedModel) -> Check:
    """Whether prompts and responses are what the chat template writes."""
    from bapo.models import splits

    seen, meaning = splits(loaded.chat), "prompt ids with response ids against the template's own rendering"
    if not loaded.chat.has_template:
        meaning = "prompts with responses as plain text, because the tokenizer has no chat template"
    if seen.faults:
        verdict = f"WRONG in {len(seen.faults)} of {seen.tried} conversations: {seen.faults[0]}"
    elif seen.told:
        verdict = (
            f"right in {seen.clean} of {seen.tried} conversations; in {seen.told} the template writes something else "
            "than stands behind its own generation prompt, and they are scored as the model would generate them"
        )
    else:
        verdict = f"right in all of {seen.tried} conversations"
    return Check("chat template", meaning, not seen.faults, verdict)


def _sample(loaded: LoadedModel, scorer: ResponseScorer) -> list[TokenGroup]:
    """Questions with answers as the model's chat has them; made-up ids where its context is too short for them.

    Raises:
        BapoError: a token of theirs has no embedding, or the chat template refuses them.
    """
    from bapo.likelihood import TokenGroup
    from bapo.models import check_vocabulary, context_length

    groups = []
    for group in read_preferences(SAMPLE).groups[:PROMPTS]:
        prompt: Any = group.prompt if loaded.chat.has_template else prompt_text(group.prompt)
        texts = [response_text(response) for response in group.responses[:RESPONSES]]
        ids = [loaded.chat.response_ids(text, prompt)[:RESPONSE_TOKENS] for text in texts]
        groups.append(TokenGroup(loaded.chat.prompt_ids(prompt), tuple(ids)))
    reach = context_length(loaded.model)
    if reach is not None and max(len(group.prompt) for group in groups) + RESPONSE_TOKENS > reach:
        return scorer.probe()
    texts_of = [ids for group in groups for ids in (group.prompt, *group.responses)]
    check_vocabulary(loaded.model, loaded.tokenizer, (*texts_of, loaded.chat.end_ids))
    return groups


def _ways(scorer: ResponseScorer, groups: list[TokenGroup], precision: str) -> Iterator[Check]:
    """Each way to compute log-probs against the model's own code, one unpadded sequence at a time."""
    from bapo.likelihood.ways import PADDED, ROWS

    fitting = [group for group in groups if scorer.fits(group)]
    scored = fitting or groups
    own = {float32: scorer.own_passes(scored, float32=float32) for float32 in _precisions(scorer)}

    def verdicts(way: Way, name: str) -> list[Verdict]:
        with foreign("The model cannot be computed this way", "report it, with the name of the model"):
            found = {float32: scorer.computed(way, scored, float32=float32) for float32 in own}
        judged = [scorer.judge(found[float32], passes, float32=float32) for float32, passes in own.items()]
        if name in PADDED and False in own and all(verdict.right for verdict in judged):
            own[False] |= _padded_passes(scorer, scored)
        return judged

    for name, way in {**PADDED, **(ROWS if fitting else {})}.items():
        yield _attempt(name, _PLACES[name], precision, partial(verdicts, way, name))
    if not fitting:
        verdict = "right, and several times slower than a row: it is the plain pass itself"
        yield Check("one at a time", "how this model's responses are scored", True, verdict)


def _padded_passes(scorer: ResponseScorer, groups: list[TokenGroup]) -> dict[str, Tensor]:
    """The model's own code with other numbers of rows, by which 16 bits round: the floor has to know of that too."""
    from bapo.likelihood.ways import PADDED

    passes = {"padded": scorer.computed(PADDED["padded"], groups)}
    with scorer.passes.nudging():
        return {**passes, "padded and nudged": scorer.computed(PADDED["padded"], groups)}


def _in_training(
    loaded: LoadedModel, scorer: ResponseScorer, groups: list[TokenGroup], probe: Probe, *, fresh: bool
) -> Iterator[Check]:
    """The model with an adapter: where training starts, in training mode, with a trained one, and with a saved one."""
    from bapo.likelihood import ResponseScorer
    from bapo.models import add_lora, disable_model_dropout, model_fingerprint

    key = model_fingerprint(loaded.model)
    try:
        policy = add_lora(loaded.model) if fresh else loaded.model
    except BapoError as error:
        yield Check("training", "an adapter on all linear layers", False, f"cannot be trained: {error}")
        return
    disable_model_dropout(policy)
    scorer = ResponseScorer(policy, loaded.kernels) if fresh else scorer
    yield _attempt(
        "step 0",
        "the model with an adapter, before its first step, against the reference",
        loaded.precision,
        lambda: _step_0(policy, scorer, probe, key, fresh=fresh),
    )
    yield _attempt(
        "training mode",
        "as it is trained against as it is scored, dropout aside",
        loaded.precision,
        lambda: [scorer.verdict_on_training_mode()],
    )
    if fresh:
        _as_if_trained(policy)
    yield _attempt(
        "trained adapter",
        "with an adapter that is not zero, as in training, against the plain pass",
        loaded.precision,
        lambda: _with_adapter(policy, scorer, groups),
    )
    yield _attempt(
        "saved adapter",
        "that adapter written to the disk and loaded by PEFT alone",
        loaded.precision,
        lambda: _saved(policy, scorer, groups),
    )


def _step_0(policy: Any, scorer: ResponseScorer, probe: Probe, key: str, *, fresh: bool) -> list[Verdict]:
    from bapo.models import model_fingerprint
    from bapo.training.reference import reference_pass, step_0_verdicts

    if model_fingerprint(policy) != key:
        raise BapoError("An adapter that is zero makes another model of it: report this, with the model's name.")
    return list(step_0_verdicts(scorer, probe, reference_pass(policy, fresh=fresh)).values())


def _as_if_trained(policy: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        if parameter.requires_grad and not parameter.any():
            drawn = torch.randn(parameter.shape, generator=generator) * AS_TRAINED
            parameter.data.copy_(drawn)


def _with_adapter(policy: Any, scorer: ResponseScorer, groups: list[TokenGroup]) -> list[Verdict]:
    from bapo.likelihood.ways import PLAIN, ROWS

    fitting = [group for group in groups if scorer.fits(group)]
    way, scored = (ROWS["grouped"], fitting) if fitting else (PLAIN, groups)
    judged = []
    for float32 in _precisions(scorer):
        own = scorer.own_passes(scored, float32=float32)
        if not float32:  # what rounds by the number of rows, and the adapter's products, which the kernel rounds too
            with suppress(Exception):  # which models that cannot be padded raise
                own |= _padded_passes(scorer, scored)
            with _rounded(policy, scorer.causal_lm.dtype):
                own["adapter rounded"] = scorer.own_passes(scored)["plain"]
        judged.append(scorer.judge(scorer.computed(way, scored, float32=float32), own, float32=float32))
    return judged


@contextmanager
def _rounded(policy: Any, dtype: torch.dtype) -> Iterator[None]:
    """An adapter's weights in the model's precision."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    precise = [parameter.data for parameter in trained]
    for parameter in trained:
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in zip(trained, precise, strict=True):
            parameter.data = data


def _saved(policy: Any, scorer: ResponseScorer, groups: list[TokenGroup]) -> list[Verdict]:
    from bapo.anchoring import first_tokens
    from bapo.training.saved import check_saved, has_biases, saved_verdict

    with TemporaryDirectory() as folder:
        with foreign("The adapter cannot be saved", "see whether the disk is full"):
            policy.save_pretrained(folder)
        if has_biases(policy):
            check_saved(policy, scorer, Path(folder), ())
            return []
        return [saved_verdict(policy, scorer, Path(folder), first_tokens(groups, 1))]


def _precisions(scorer: ResponseScorer) -> tuple[bool, ...]:
    """Of the model's own precision and float32, those that it can be computed in; whether each is float32."""
    if scorer.is_float32:
        return (True,)
    return (False, True) if scorer.has_float32 else (False,)


def _attempt(name: str, meaning: str, precision: str, numbers: Callable[[], Sequence[Verdict]]) -> Check:
    """A check of numbers; what breaks it off is its verdict."""
    try:
        verdicts = numbers()
    except BapoError as error:
        return Check(name, meaning, False, f"WRONG: {error}")
    worst: dict[str, Verdict] = {}
    for verdict in sorted(verdicts, key=lambda verdict: (not verdict.right, verdict.largest)):
        worst["float32" if verdict.precision == "float32" else precision] = verdict
    deviations = tuple(
        Deviation(name, verdict.largest, verdict.gap, verdict.floor.mean, verdict.floor.limit)
        for name, verdict in sorted(worst.items(), key=lambda item: item[0] == "float32")
    )
    right = all(deviation.right for deviation in deviations)
    return Check(name, meaning, right, _in_words(deviations, right), deviations)


def _in_words(deviations: Sequence[Deviation], right: bool) -> str:
    if not right:
        worst = max(deviation.mean / max(deviation.limit, 1e-12) for deviation in deviations if not deviation.right)
        return f"WRONG: {worst:,.0f} times what rounding explains" if worst == worst else "WRONG: no number"
    same = all(deviation.largest == 0 for deviation in deviations)
    return "right: the same to the bit" if same else "right: no more than rounding"
