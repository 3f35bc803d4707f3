"""`bapo sample`: preferences by rejection sampling (RSO), judged by a trained adapter.

Liu et al. 2023, "Statistical rejection sampling improves preference optimization": candidates are sampled from the
reference model, a reward says which of them the optimal policy could have said, and those are paired. Here the reward
is the implicit one of DPO and its kin: beta times the log-ratio of the model with a trained adapter to that without it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from bapo.errors import BapoError
from bapo.files import checksum, checksum_of_file, make_folder, write_text
from bapo.jobs import stages
from bapo.jobs.job import Job, provenance
from bapo.jobs.marks import adapter_mark, model_mark
from bapo.jobs.recipe import Recipe
from bapo.preferences import Preferences, Prompt, turns_of
from bapo.preferences.record import TEMPLATE, TOOLS, turn_as_dict
from bapo.preferences.rejection_sampling import sample_pairs
from bapo.progress import OnProgress, silent
from bapo.results import SAMPLED, Record, SampledPreferences, identity_of, record_of
from bapo.settings import check_number

if TYPE_CHECKING:
    from bapo.anchoring import Candidates
    from bapo.models import SharedModel

FEW, TIES = "prompts left out: fewer than two candidates", "pairs left out: equal rewards"
_AGAIN = "delete both, or name another with --output"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How candidates are sampled and accepted. The paper takes 64 candidates and accepts 8, at a beta of 0.5.

    Attributes:
        candidates: responses sampled for each prompt.
        accept: how many of them are accepted, and paired two by two.
        temperature: of the sampling; 1 samples from the reference itself.
        max_new_tokens: of a candidate; one that has not ended by then is none.
        rejection_beta: temperature of the acceptance in units of reward: towards 0 the best are accepted, towards
            infinity any. With the reward's own beta, accepted candidates come from the policy with the adapter.
        seed: of the sampling and the acceptance.

    Raises:
        BapoError: fewer than two are accepted, more than there are, or a number is out of range.
    """

    candidates: int = 16
    accept: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 256
    rejection_beta: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("responses", self.candidates, shown="candidates")
        check_number("beta", self.rejection_beta, shown="rejection_beta")
        if not 2 <= self.accept <= self.candidates:
            raise BapoError(f"accept is {self.accept}: at least 2, and at most the {self.candidates} candidates.")
        if not self.temperature > 0:
            raise BapoError("temperature must be above 0: candidates are sampled, so that they differ.")


def sample(
    recipe: Recipe,
    reward: str,
    path: Path,
    how: Sampling,
    beta: float | None = None,
    on_progress: OnProgress = silent,
    *,
    shared: SharedModel | None = None,
    scores: Path | None = None,
) -> Record[SampledPreferences]:
    """Write a comparison file of accepted candidates, for the prompts that the recipe trains on.

    Held-out prompts are left alone, so that what is trained on the file can be evaluated on them. What was made is kept
    in the two models' stores: stopped at any moment, the same call goes on from there and ends with the same bytes.
    Where the file is there already, made in the same way, no model is loaded.

    Args:
        recipe: its model, the adapter that it may have (both are the reference), its preferences and their split.
        reward: a trained adapter, by which candidates are judged.
        path: the JSONL file; beside it lies its record.
        how: how candidates are sampled and accepted.
        beta: the reward is this times the log-ratio; by default what the adapter was trained with.
        on_progress: told the stage, how many are done, of how many.
        shared: the recipe's model, if the caller has it (`stages.shared_model`).
        scores: folder in which a store of the adapter's own scores is kept; the user's cache folder by default.

    Raises:
        BapoError: the file holds something else, no two candidates of a prompt are left, and so on.
    """
    stages.check(recipe, [reward])
    beta = _beta_of(reward) if beta is None else float(check_number("beta", beta, shown="beta"))
    prompts = stages.read(recipe).train
    data = prompts.fingerprint()
    job = _job(recipe, data, reward, path, how, beta)
    done = _find(job, path)
    if done is not None:
        return done
    judged = _judged(recipe, prompts, reward, how, on_progress, shared or stages.shared_model(recipe), scores)
    text, content = _accepted(judged, how, beta)
    made_from = provenance(recipe, judged.reference, judged.made_on, data=data, adapter=reward, **asdict(how))
    record = job.finish(content, made_from)  # first, so that a file that is there without one is somebody else's
    write_text(path, text)
    return record


class _Judged(NamedTuple):
    """Candidates to each prompt, their log-ratios, what was left out, who said them and on what machine."""

    candidates: list[Candidates]
    log_ratios: list[list[float]]
    counts: Counter[str]
    reference: str
    made_on: dict[str, Any]


def _accepted(judged: _Judged, how: Sampling, beta: float) -> tuple[str, SampledPreferences]:
    """The comparison file, and what is said of it.

    Raises:
        BapoError: no pair is left.
    """
    rewards = [[beta * ratio for ratio in of_prompt] for of_prompt in judged.log_ratios]
    counts = Counter(judged.counts)
    rows = list(_rows(judged.candidates, rewards, how, counts))
    if not rows:
        raise BapoError(
            f"No prompt has two candidates of unlike reward ({_in_words(counts)}): sample more candidates, or "
            "longer ones (max_new_tokens)."
        )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text, SampledPreferences(
        prompts=len(judged.candidates),
        candidates=sum(map(len, rewards)),
        pairs=len(rows),
        mean_reward={
            "all": fmean(chain.from_iterable(rewards)),
            **{side: fmean(row[f"{side}_reward"] for row in rows) for side in ("chosen", "rejected")},
        },
        beta=beta,
        counts=dict(+counts),
        checksum_of_file=checksum(text.encode()),
    )


def _judged(
    recipe: Recipe,
    prompts: Preferences,
    reward: str,
    how: Sampling,
    on_progress: OnProgress,
    shared: SharedModel,
    scores: Path | None,
) -> _Judged:
    from bapo.anchoring import AnchorStore, GenerationSettings, LengthPolicy, candidate_logps, sample_candidates
    from bapo.models import machine

    settings = GenerationSettings(how.max_new_tokens, how.temperature, responses=how.candidates, seed=how.seed)
    lengths = LengthPolicy(recipe.preferences.max_prompt_tokens)
    on_progress("loading the model", 0, 1)
    with shared.wearing(recipe.model.reference_adapter) as model:
        on_progress("loading the model", 1, 1)
        stages.check_base(recipe, reward, model)
        store = stages.open_store(recipe, model)
        candidates, counts = sample_candidates(
            prompts, model, store, settings, lengths=lengths, on_progress=on_progress
        )
        without = candidate_logps(candidates, model, store, "reference log-probs", on_progress)
    with shared.wearing(reward) as policy:
        mark = adapter_mark(reward)
        with_adapter = AnchorStore(None if scores is None or mark is None else scores / f"judge-{mark[:12]}", policy)
        judged = candidate_logps(candidates, policy, with_adapter, "log-probs with the adapter", on_progress)
    ratios = [
        [policy_logp - ref for policy_logp, ref in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(judged, without, strict=True)
    ]
    return _Judged(candidates, ratios, counts, str(store.identity["model"]), machine(model.model.device))


def _job(recipe: Recipe, data: str, reward: str, path: Path, how: Sampling, beta: float) -> Job[SampledPreferences]:
    identity = identity_of(
        preferences=data,
        model=model_mark(recipe.model),
        reward=adapter_mark(reward),
        beta=beta,
        max_prompt_tokens=recipe.preferences.max_prompt_tokens,
        plain=recipe.preferences.plain,
        **asdict(how),
    )
    return Job(SAMPLED, record_of_sample(path), identity)


def record_of_sample(path: Path) -> Path:
    """Where the record of a sampled comparison file lies."""
    return path.with_name(f"{path.name}.record.json")


def _find(job: Job[SampledPreferences], path: Path) -> Record[SampledPreferences] | None:
    """The record of the file, if it is there and as it was written; known before anything costs.

    Raises:
        BapoError: there is a file that was made from something else, changed, or made by somebody else.
    """
    make_folder(path.parent)
    if not job.path.is_file():
        if path.exists():
            raise BapoError(f"{path} is there already, and was not sampled: name another with --output.")
        return None
    record = job.find()
    if record is None:
        raise BapoError(f"{path} was sampled from something else, or in another way: {_AGAIN}.")
    if not path.is_file():
        return None
    if checksum_of_file(path) != record.content.checksum_of_file:
        raise BapoError(f"{path} is not as it was sampled, but changed or damaged: {_AGAIN}.")
    return record


def _beta_of(reward: str) -> float:
    """The beta that an adapter was trained with; the objective's default of one that was made elsewhere."""
    from bapo.objectives import make_objective

    trained = (record_of(reward) or {}).get("recipe", {}).get("training", {})
    return make_objective(trained.get("objective", "dpo"), beta=trained.get("beta")).beta


def _rows(
    candidates: Sequence[Candidates], rewards: Sequence[Sequence[float]], how: Sampling, counts: Counter[str]
) -> Any:
    """One row a pair. A prompt's draws are its own, so that its company changes nothing."""
    for group, group_rewards in zip(candidates, rewards, strict=True):
        accept = min(how.accept, len(group_rewards))
        if accept < 2:
            counts[FEW] += 1
            continue
        rng = random.Random(f"{how.seed} {checksum(json.dumps(group.ids).encode())}")
        pairs = sample_pairs(group_rewards, accept, how.rejection_beta, rng)
        counts[TIES] += accept // 2 - len(pairs)
        for chosen, rejected in pairs:
            yield {
                **_prompt_columns(group.prompt),
                "chosen": _response_column(group.prompt, group.texts[chosen]),
                "rejected": _response_column(group.prompt, group.texts[rejected]),
                "chosen_reward": group_rewards[chosen],
                "rejected_reward": group_rewards[rejected],
            }


def _prompt_columns(prompt: Prompt) -> dict[str, Any]:
    """A prompt as the columns that `bapo.preferences.formats` reads."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    beside = {TOOLS: "tools", TEMPLATE: "chat_template_kwargs"}
    handed = {beside[turn.role]: json.loads(turn.content) for turn in prompt if turn.role in beside}
    return {"prompt": [turn_as_dict(turn) for turn in turns_of(prompt)], **handed}


def _response_column(prompt: Prompt, text: str) -> Any:
    """A response; as a turn behind turns, so that no text is taken for something else."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in (+counts).items()) or "of none"
