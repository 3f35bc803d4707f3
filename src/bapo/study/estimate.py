"""What the jobs of a study will take: tokens, floating-point operations, hours, memory and disk.

A token costs 2 operations a parameter forward, and as many again backward where only an adapter is trained, whose own
gradients are small beside that (Kaplan et al. 2020, "Scaling laws for neural language models", section 2.1); attention
adds 4 * layers * hidden operations for each token that it sees. Generated tokens are counted apart: they are bound by
how fast weights are read and not by operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bapo.errors import BapoError
from bapo.jobs import Recipe
from bapo.jobs.sampling import Sampling
from bapo.results import BASE, EstimatedJob
from bapo.study.grid import Study, StudyJob
from bapo.study.rates import Rates
from bapo.study.sizes import ModelSize, PreferenceSize, size_of

_ADAPTER_BYTES = 4
_TRAINED_BYTES = 16
"""Of each parameter that is trained: float32 weight, gradient and two moments."""

_CANDIDATE_BYTES = 1000
"""Of each candidate on the disk: its token ids and scores."""

_DIVERGENCE_PASSES = 2 * 2 * 2
"""Of two topics, two models, and two precisions where the first does not suffice."""

_ACTIVATIONS = 20
"""Numbers of the hidden state's width that a layer keeps of a token for the backward pass, in the model's precision."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a job computes.

    Attributes:
        forward: tokens that are only scored, ``trained`` tokens with a backward pass, ``generated`` tokens.
        context: tokens that one of them sees in the mean.
        memory, disk: bytes.
    """

    forward: float = 0.0
    trained: float = 0.0
    generated: float = 0.0
    context: float = 0.0
    memory: float = 0.0
    disk: float = 0.0

    def flops(self, model: ModelSize) -> float:
        """Floating-point operations."""
        tokens = self.forward + 2 * self.trained + self.generated
        return tokens * (2 * model.parameters + 4 * model.layers * model.hidden * self.context)


def estimate(study: Study, rates: Rates, took: Mapping[str, float]) -> list[EstimatedJob]:
    """What each job of a study will take; a model is loaded in the first of its jobs, and kept.

    Args:
        study: whose file states sizes.
        rates: of a machine.
        took: seconds that jobs took that are done.

    Raises:
        BapoError: the file does not state a size; says which.
    """
    labels = {cell.recipe.model.name: cell.model for cell in study.cells.values()}
    estimates: list[EstimatedJob] = []
    loaded: set[str] = set()
    made: set[tuple[str, ...]] = set()
    for job in study.jobs.values():
        label = labels[job.recipe.model.name]
        model = study.sizes.models.get(label)
        if model is None:
            raise BapoError(f"{study.path} does not state how large {label} is: add it to sizes.models.")
        source = study.cell_of(job).preference
        data = size_of(study.sizes.preferences, source)
        if data is None:
            raise BapoError(f"{study.path} does not state how large {source} is: add it to sizes.preferences.")
        how = _way(study, job, label, data)
        work = _work(study, job, data, model, again=how in made)
        seconds = rates.seconds(model, work.forward, work.trained, work.generated, work.context)
        seconds += 0.0 if label in loaded else rates.start
        loaded.add(label)
        made.add(how)
        estimates.append(
            EstimatedJob(
                job.key,
                job.work,
                tokens=work.forward + work.trained,
                generated=work.generated,
                flops=work.flops(model),
                seconds=seconds,
                memory=work.memory,
                disk=work.disk,
                took=took.get(job.key),
            )
        )
    return estimates


def _way(study: Study, job: StudyJob, label: str, data: PreferenceSize) -> tuple[str, ...]:
    """What jobs have in common of which a later one finds responses that the first one has made."""
    if job.work == "sample":
        of = "" if data.shared != "nothing" else job.recipe.preferences.source
        return (label, of, data.model_dump_json(), repr(_sampling_of(study, job)))
    return (label, job.work, data.model_dump_json(), job.recipe.anchoring.model_dump_json())


def _sampling_of(study: Study, job: StudyJob) -> Sampling | None:
    cell = study.cells.get(job.of)
    return None if cell is None or cell.sampling is None else cell.sampling.how


def _work(study: Study, job: StudyJob, data: PreferenceSize, model: ModelSize, *, again: bool) -> Work:
    """Of one job; ``again`` says that preferences of this size went through its like with this model before."""
    if job.work == "anchor":
        return _anchoring(job.recipe, data, model, data.shared if again else "nothing")
    how = _sampling_of(study, job)
    if job.work == "sample" and how is not None:
        return _sampling(job.recipe, data, model, how, again=again)
    if job.work == "train":
        return _training(job.recipe, data if how is None else _sampled(data, how), model, apart=how is not None)
    return _evaluation(study, job, data, model)


def _prompts(recipe: Recipe, data: PreferenceSize) -> tuple[float, float]:
    """Training and held-out prompts."""
    asked = recipe.preferences
    held_out = float(min(100, data.prompts // 5) if asked.held_out is None else asked.held_out)
    train = data.prompts - held_out
    return (train if asked.max_train_prompts is None else min(train, asked.max_train_prompts)), held_out


def _group_tokens(data: PreferenceSize, pairs: float, *, apart: bool = False) -> float:
    """Tokens of a prompt with its base response and the responses of so many of its pairs.

    Given pairs share a chosen response, and sampled ones stand ``apart``.
    """
    responses = 2 * pairs if apart else pairs + 1
    return data.prompt_tokens + responses * data.response_tokens + data.base_tokens


def _anchoring(recipe: Recipe, data: PreferenceSize, model: ModelSize, shared: str) -> Work:
    """Of all prompts, less what is shared with preferences that were anchored before."""
    if shared == "responses":
        return Work(memory=_weights(model))
    prompts = sum(_prompts(recipe, data))
    per_prompt = _group_tokens(data, data.pairs / data.prompts)
    generated = prompts * data.base_tokens * recipe.anchoring.base_responses
    if shared == "prompts":
        per_prompt, generated = per_prompt - data.base_tokens, 0.0
    context = data.prompt_tokens + data.base_tokens / 2
    return Work(prompts * per_prompt, generated=generated, context=context, memory=_weights(model), disk=prompts * 2000)


def _sampling(recipe: Recipe, data: PreferenceSize, model: ModelSize, how: Sampling, *, again: bool) -> Work:
    """Of training prompts: candidates and their scores under the reference, less those of before, and the reward."""
    prompts, _ = _prompts(recipe, data)
    answers = prompts * how.candidates
    tokens = prompts * data.prompt_tokens + answers * data.base_tokens
    return Work(
        forward=tokens * (1 if again else 2),
        generated=0.0 if again else answers * data.base_tokens,
        context=data.prompt_tokens + data.base_tokens / 2,
        memory=_weights(model),
        disk=answers * _CANDIDATE_BYTES,
    )


def _sampled(data: PreferenceSize, how: Sampling) -> PreferenceSize:
    """The pairs that are accepted, of responses as long as base responses."""
    pairs = data.prompts * (how.accept // 2)
    return data.model_copy(update={"pairs": pairs, "response_tokens": data.base_tokens})


def _training(recipe: Recipe, data: PreferenceSize, model: ModelSize, *, apart: bool) -> Work:
    asked = recipe.training
    train, _ = _prompts(recipe, data)
    pairs_a_prompt = data.pairs / data.prompts
    batch = asked.per_device_train_batch_size * asked.gradient_accumulation_steps
    steps = asked.max_steps or max(1.0, (asked.num_train_epochs or 1.0) * train * pairs_a_prompt / batch)
    together = min(pairs_a_prompt, batch) if asked.sampler == "by-prompt" else 1.0
    tokens = steps * batch / together * _group_tokens(data, together, apart=apart)
    trained = _trained_parameters(recipe, model)
    kept = (asked.max_batch_tokens or 2048) * model.layers * model.hidden * _ACTIVATIONS * 2
    memory = _weights(model) + trained * _TRAINED_BYTES + kept
    disk = trained * _ADAPTER_BYTES  # checkpoints are deleted when a run is done
    context = data.prompt_tokens + data.response_tokens / 2
    return Work(trained=tokens, context=context, memory=memory, disk=disk)


def _trained_parameters(recipe: Recipe, model: ModelSize) -> float:
    """Of LoRA on all linear layers, whose inputs and outputs are about 20 widths a layer; without LoRA all."""
    return 20.0 * recipe.lora.rank * model.hidden * model.layers if recipe.lora.enabled else model.parameters


def _evaluation(study: Study, job: StudyJob, data: PreferenceSize, model: ModelSize) -> Work:
    asked = study.evaluation
    forward = 0.0
    for name in asked.benchmarks:
        size = study.sizes.benchmarks.get(name)
        if size is None:
            raise BapoError(f"{study.path} does not state how large {name} is: add it to sizes.benchmarks.")
        forward += min(asked.limit or size.questions, size.questions) * size.tokens
    generated = len(asked.questions) * data.base_tokens
    if job.of != BASE:
        _, held_out = _prompts(job.recipe, data)
        forward += 2 * held_out * _group_tokens(data, data.pairs / data.prompts)
        generated += asked.answers * data.base_tokens
    if job.of in study.cells:
        sampled = data.prompt_tokens + min(64.0, data.base_tokens)
        forward += _DIVERGENCE_PASSES * asked.divergence * sampled
    context = data.prompt_tokens + data.response_tokens / 2
    return Work(forward, generated=generated, context=context, memory=_weights(model))


def _weights(model: ModelSize) -> float:
    return model.parameters * model.bytes_per_parameter
