"""The job that measures how far an adapter moves a model's distributions, whatever its answers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bapo.errors import BapoError
from bapo.files import checksum, read_text
from bapo.jobs import stages
from bapo.jobs.job import Job, anchoring_settings, provenance, reference_name
from bapo.jobs.marks import adapter_mark
from bapo.jobs.recipe import Recipe
from bapo.jobs.variants import Variant
from bapo.preferences import Preferences, prompt_text, read_preferences
from bapo.progress import OnProgress, silent
from bapo.results import (
    MOVEMENT,
    Movement,
    Record,
    TextReport,
    divergence_report,
    identity_of,
    text_report,
)
from bapo.settings import check_number

if TYPE_CHECKING:
    from bapo.likelihood import Divergence, TokenGroup
    from bapo.models import LoadedModel, SharedModel

HELD_OUT_TOPIC, OTHER_TOPICS = "held-out", "other"

_PART_TOKENS = 256
"""Tokens of a part of a text, each of which is predicted from those before it in the part."""


@dataclass(frozen=True, slots=True)
class MovementPlan:
    """What is measured.

    Attributes:
        prompts: of the preference's held-out prompts and of other topics, at most so many each; 0 for no divergence.
        other_topics: preferences whose prompts are the other topics.
        max_new_tokens: longest sampled response, tokens.
        seed: of the sampling.
        text: a text file whose cross-entropy is taken; None for none.

    Raises:
        BapoError: a number is out of range.
    """

    prompts: int = 50
    other_topics: str = "starter:concise"
    max_new_tokens: int = 64
    seed: int = 0
    text: Path | None = None

    def __post_init__(self) -> None:
        if self.prompts:
            check_number("responses", self.prompts, shown="the number of prompts")
        check_number("max_new_tokens", self.max_new_tokens)
        check_number("base_seed", self.seed)


def measure_movement(
    recipe: Recipe,
    variants: Sequence[Variant],
    plan: MovementPlan,
    records: Path,
    shared: SharedModel,
    on_progress: OnProgress = silent,
) -> dict[str, Record[Movement]]:
    """How far each adapter moves the recipe's model; what was measured before is read.

    Args:
        recipe: names the model, and the preferences whose held-out prompts are answered.
        variants: those that have an adapter are measured.
        plan: what is measured.
        records: where records are kept.
        shared: the recipe's model, which is loaded when it is first needed.
        on_progress: told how far it is.

    Returns:
        By the variant's name.

    Raises:
        BapoError: prompts or text cannot be read, or what the stages raise.
    """
    work = _Work(recipe, plan, records, shared, on_progress)
    return {variant.name: work.measure(variant) for variant in variants if variant.adapter is not None}


class _Work:
    """The measuring of several adapters; what the reference says is made once, when the first is not done."""

    def __init__(
        self, recipe: Recipe, plan: MovementPlan, records: Path, shared: SharedModel, on_progress: OnProgress
    ) -> None:
        self.recipe, self.plan, self.records, self.shared, self.on_progress = recipe, plan, records, shared, on_progress
        self.text = "" if plan.text is None else read_text(plan.text)
        self.topics = self._topics() if plan.prompts else {}
        self._sampled: dict[str, tuple[TokenGroup, ...]] | None = None
        self._parts: list[TokenGroup] = []
        self._before: list[float] = []
        self._again: list[float] = []
        self._made_on: dict[str, Any] = {}
        self._weights = ""

    def _topics(self) -> dict[str, Preferences]:
        asked = self.recipe.preferences
        folder = Path(asked.data_folder) if asked.data_folder else None
        other = read_preferences(self.plan.other_topics, data_folder=folder, plain=asked.plain)
        split = stages.read(self.recipe)
        own = {prompt_text(group.prompt) for group in split.whole.groups}
        groups = tuple(group for group in other.groups if prompt_text(group.prompt) not in own)
        topics = {HELD_OUT_TOPIC: split.held_out, OTHER_TOPICS: replace(other, groups=groups)}
        if not groups:
            del topics[OTHER_TOPICS]
            self.on_progress(f"no prompts of other topics: {other.name} has those of the preference", 0, 1)
        return {topic: replace(read, groups=read.groups[: self.plan.prompts]) for topic, read in topics.items()}

    def job(self, variant: Variant) -> Job[Movement]:
        identity = identity_of(
            data=self._data(),
            text=checksum(self.text.encode()),
            plan={**asdict(self.plan), "text": None},
            adapter=adapter_mark(variant.adapter),
            **anchoring_settings(self.recipe),
        )
        return Job(MOVEMENT, self.records / "records" / f"{identity}.json", identity)

    def _data(self) -> dict[str, str]:
        return {topic: read.fingerprint() for topic, read in self.topics.items()}

    def measure(self, variant: Variant) -> Record[Movement]:
        job = self.job(variant)
        done = job.find()
        if done is not None:  # of the same adapter, which may have had another name
            return replace(done, content=replace(done.content, name=variant.name))
        self._know_reference()
        reference = None if self._switches_off(variant) else stages.load(self.recipe)
        with self.shared.wearing(variant.adapter) as model:
            divergences = {
                topic: self._divergence(f"{variant.name}: divergence, {topic} prompts", groups, model, reference)
                for topic, groups in (self._sampled or {}).items()
            }
            text = self._text_report(variant, model)
        reports = {
            topic: divergence_report(each.summed(), each.lengths, floor=each.floor, precision=each.precision)
            for topic, each in divergences.items()
        }
        rows = [
            {"topic": topic, "divergence": total, "tokens": tokens}
            for topic, each in divergences.items()
            for total, tokens in zip(each.summed(), each.lengths, strict=True)
        ]
        content = Movement(variant.name, reference_name(self.recipe), reports, text)
        made_from = provenance(
            self.recipe, self._weights, self._made_on, adapter=variant.adapter, movement=asdict(self.plan)
        )
        return job.finish(content, replace(made_from, data=self._data()), rows)

    def _switches_off(self, variant: Variant) -> bool:
        """Whether the model with the adapter becomes its reference by switching that off."""
        assert variant.adapter is not None
        return self.recipe.model.reference_adapter is None and (Path(variant.adapter) / "adapter_config.json").is_file()

    def _know_reference(self) -> None:
        """What the reference samples, and what it makes of the text; once."""
        if self._sampled is not None:
            return
        from bapo.likelihood import ResponseScorer
        from bapo.models import model_fingerprint

        with self.shared.wearing(self.recipe.model.reference_adapter) as model:
            self._sampled = {topic: self._sample(read, model) for topic, read in self.topics.items()}
            self._weights = model_fingerprint(model.model)
            scorer = ResponseScorer(model.model, model.kernels)
            self._made_on = scorer.made_on()
            self._parts = _parts(self.text, model) if self.text else []
            if self._parts:
                self._before = scorer.score(self._parts).summed().tolist()
                elsewhere = [self._parts[-1], *self._parts]  # each of them stands elsewhere in a row than before
                self._again = scorer.score(elsewhere).summed().tolist()[1:]

    def _sample(self, read: Preferences, model: LoadedModel) -> tuple[TokenGroup, ...]:
        from bapo.anchoring import GenerationSettings, LengthPolicy, sample_responses
        from bapo.likelihood import TokenGroup

        settings = GenerationSettings(self.plan.max_new_tokens, temperature=1.0, seed=self.plan.seed)
        lengths = LengthPolicy(self.recipe.preferences.max_prompt_tokens)
        store = stages.open_store(self.recipe, model)
        drawn = sample_responses(read, model, store, settings, lengths=lengths, on_progress=self.on_progress)
        return tuple(
            TokenGroup(ids, tuple(response.ids for response in responses)) for _, ids, responses in drawn.prompts
        )

    def _divergence(
        self, stage: str, groups: Sequence[TokenGroup], model: LoadedModel, reference: LoadedModel | None
    ) -> Divergence:
        from bapo.likelihood import divergence

        done = 0

        def tell(finished: int) -> None:
            nonlocal done
            done = min(done + finished, len(groups))
            self.on_progress(stage, done, len(groups))

        other = None if reference is None else reference.model
        return divergence(model.model, groups, reference=other, kernels=model.kernels, on_progress=tell)

    def _text_report(self, variant: Variant, model: LoadedModel) -> TextReport | None:
        from bapo.likelihood import ResponseScorer

        if not self._parts:
            return None
        self.on_progress(f"{variant.name}: text", 0, 1)
        after = ResponseScorer(model.model, model.kernels).score(self._parts).summed().tolist()
        self.on_progress(f"{variant.name}: text", 1, 1)
        tokens = [len(part.responses[0]) for part in self._parts]
        return text_report(self._before, after, tokens, again=self._again)


def _parts(text: str, model: LoadedModel) -> list[TokenGroup]:
    """A text in parts, each behind the token that begins a text or, of a tokenizer that has none, its own first one."""
    from bapo.likelihood import TokenGroup
    from bapo.models import check_vocabulary

    tokenizer = model.tokenizer
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    check_vocabulary(model.model, tokenizer, [ids])
    first = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    parts = [(*first, *ids[start : start + _PART_TOKENS]) for start in range(0, len(ids), _PART_TOKENS)]
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        raise BapoError("The text has not two tokens, so there is nothing to predict in it: name a longer one.")
    return [TokenGroup(part[:1], (part[1:],)) for part in parts]
