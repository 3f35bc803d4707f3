"""How large the models and data of a study are where its file does not say so, counted from what is on this machine."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean

from bapo.errors import BapoError, foreign
from bapo.jobs import Recipe, stages
from bapo.study.grid import Cell, Study
from bapo.study.sizes import BenchmarkSize, ModelSize, PreferenceSize, size_of

_LOOKED_AT = 100
"""Prompts whose tokens are counted."""

_BYTES = {"nf4": 0.56, "float32": 4.0}
"""Of a parameter; 2 in all other precisions."""


def with_counted_sizes(study: Study) -> Study:
    """The study with all sizes that an estimate needs; those that its file states stay as they are.

    Base responses count as long as they may be, and nothing as shared between preferences. No model is loaded.

    Raises:
        BapoError: a size is not stated, and cannot be counted here; says which.
    """
    models, preferences = dict(study.sizes.models), dict(study.sizes.preferences)
    for cell in study.cells.values():
        if cell.model not in models:
            models[cell.model] = _model_size(study, cell)
        if size_of(preferences, cell.preference) is None:
            all_alike = "user:*" if cell.preference.startswith("user:") else cell.preference  # thousands, of one file
            preferences[all_alike] = _preference_size(study, cell)
    benchmarks = dict(study.sizes.benchmarks)
    for name in study.evaluation.benchmarks:
        known = benchmarks.get(name) or _benchmark_size(name)
        if known is not None:
            benchmarks[name] = known
    counted = {"models": models, "preferences": preferences, "benchmarks": benchmarks}
    return replace(study, sizes=study.sizes.model_copy(update=counted))


def _folder(study: Study, cell: Cell) -> Path:
    from bapo.models import local_folder

    folder = local_folder(cell.recipe.model.name)
    if folder is None:
        raise BapoError(
            f"{study.path} does not state how large {cell.model} is, which is not on this machine: add it to "
            "sizes.models, and its preferences to sizes.preferences."
        )
    return folder


def _model_size(study: Study, cell: Cell) -> ModelSize:
    from transformers import AutoConfig

    from bapo.models import resolve_precision
    from bapo.models.claims import shapes_in

    folder = _folder(study, cell)
    with foreign(
        f"The size of the model {cell.model} could not be found out", f"state it in {study.path} (sizes.models)"
    ):
        config = AutoConfig.from_pretrained(folder).get_text_config()
        return ModelSize(
            parameters=float(sum(map(math.prod, shapes_in(folder)))),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            bytes_per_parameter=_BYTES.get(resolve_precision(cell.recipe.model.precision), 2.0),
            source="counted in its files",
        )


def _preference_size(study: Study, cell: Cell) -> PreferenceSize:
    from bapo.models import ChatFormat, load_tokenizer

    recipe = _with_data(study, cell.recipe)
    chat = ChatFormat(load_tokenizer(str(_folder(study, cell)), recipe.model.name))
    groups = stages.read_all(recipe).groups
    few = groups[:: math.ceil(len(groups) / _LOOKED_AT)]
    responses = chain.from_iterable((len(chat.response_ids(r, g.prompt)) for r in g.responses) for g in few)
    most = recipe.preferences.max_response_tokens
    return PreferenceSize(
        prompts=len(groups),
        pairs=sum(len(group.pairs) for group in groups),
        prompt_tokens=fmean(len(chat.prompt_ids(group.prompt)) for group in few),
        response_tokens=fmean(min(length, most) for length in responses),
        base_tokens=recipe.anchoring.base_max_new_tokens,
        source="counted in the data; base responses as long as they may be",
    )


def _with_data(study: Study, recipe: Recipe) -> Recipe:
    """The recipe, where the study's data lie."""
    if study.data_folder is None:
        return recipe
    asked = recipe.preferences.model_copy(update={"data_folder": str(study.data_folder)})
    return recipe.model_copy(update={"preferences": asked})


def _benchmark_size(name: str) -> BenchmarkSize | None:
    from bapo.evaluation.registry import BENCHMARKS

    known = BENCHMARKS[name].size
    if known is None:
        return None
    return BenchmarkSize(questions=known[0], tokens=known[1], source="counted in the benchmark's file")
