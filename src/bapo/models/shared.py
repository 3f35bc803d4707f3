"""One model in memory that wears adapters one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bapo.models.adapters import check_adapter, leaves_base_alone, put_on
from bapo.models.fingerprint import unchanged
from bapo.models.loading import LoadedModel, adapters_tokenizer


class SharedModel:
    """A model that is loaded, hashed and probed once, and wears adapters one after another.

    An adapter is put on and checked by the same code as in `load_model`, and taken off by PEFT, which puts the model's
    own modules back. So the numbers are those of a model that was loaded with it.

    Args:
        load: loads the model without any adapter, or with one that it is given; called when the model is first needed.
    """

    def __init__(self, load: Callable[[str | None, bool], LoadedModel]) -> None:
        self._load = load
        self._bare: LoadedModel | None = None
        self._worn = False
        self._known: dict[Any, str] = {}

    @property
    def bare(self) -> LoadedModel:
        """The model without any adapter."""
        if self._bare is None:
            self._bare = self._load(None, False)
        return self._bare

    def drop(self) -> None:
        """Let go of the model; it is loaded again when it is needed."""
        self._bare = None
        self._known.clear()

    @contextmanager
    def wearing(self, adapter: str | Path | None, *, trainable: bool = False) -> Iterator[LoadedModel]:
        """The model with an adapter, or bare; afterwards it is bare again.

        Full weights, and adapters that bring a vocabulary of their own or change the model's own weights, are loaded
        by themselves.

        Raises:
            BapoError: what `load_model` raises of the adapter.
        """
        if adapter is None:
            with self._taken(), unchanged(self.bare.model, self._known):
                yield self.bare
        elif not self._fits(adapter):
            yield self._load(str(adapter), trainable)
        else:
            with self.fresh(lambda model: put_on(model, adapter, trainable=trainable).eval()) as loaded:
                yield loaded

    @contextmanager
    def fresh(self, put: Callable[[Any], Any]) -> Iterator[LoadedModel]:
        """The model with an adapter that ``put`` puts on it; afterwards it is bare again."""
        bare = self.bare
        with self._taken(), unchanged(bare.model, self._known):
            note = _Note(bare.model)
            try:
                adapted = put(bare.model)
            except BaseException:
                self.drop()  # parts of the adapter may be on it
                raise
            try:
                yield replace(bare, model=adapted)
            finally:
                adapted.unload()
                note.put_back()

    @contextmanager
    def _taken(self) -> Iterator[None]:
        if self._worn:
            raise RuntimeError("the model wears an adapter already")
        self._worn = True
        try:
            yield
        finally:
            self._worn = False

    def _fits(self, adapter: str | Path) -> bool:
        config = check_adapter(adapter)
        tokenizer = self.bare.tokenizer
        return leaves_base_alone(config) and adapters_tokenizer(adapter, tokenizer, quiet=True) is tokenizer


_PEFTS_NOTES = ("peft_config", "_hf_peft_config_loaded", "active_adapter")
"""Attributes that PEFT leaves on a model."""


class _Note:
    """What is trainable of a model, which of its modules are in training mode, and what PEFT notes on it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._modes = {module: module.training for module in model.modules()}
        self._notes = {name for name in _PEFTS_NOTES if name in vars(model)}

    def put_back(self) -> None:
        """Once the model's own modules are back in their places."""
        for name in _PEFTS_NOTES:
            if name in vars(self._model) and name not in self._notes:
                delattr(self._model, name)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
            parameter.grad = None
        for module, mode in self._modes.items():
            module.training = mode
