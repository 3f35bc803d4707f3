"""Our scorer as a model of `lm-eval`: ``bapo lm-eval --model bapo --model_args pretrained=smollm2 --tasks piqa``.

The prompt of a question is computed once for all of its choices, and what neighbouring prompts begin with (the examples
of a few-shot test) once for all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from bapo.errors import BapoError
from bapo.kernels import Kernels, chosen
from bapo.kernels.kept_memory import kept_memory
from bapo.likelihood import ResponseScorer, TokenGroup, TokenIds, share_headers
from bapo.models import LoadedModel, check_vocabulary, context_length, load_model

SCORED_TOKENS = 16384
"""Input tokens scored at once."""

Encoded = tuple[Any, Sequence[int], Sequence[int]]


@register_model("bapo")
class BapoLM(TemplateLM):
    """A model whose `loglikelihood` stands on the one scoring core.

    Args:
        pretrained: a model's name for `bapo.models.load_model`, or a loaded model.
        adapter: folder or hub id of an adapter on it.
        precision: auto, bf16, float32 or nf4.
        device: where it goes; an accelerator that is not there falls back to the default, as in `lm-eval`'s own model.
        max_tokens: input tokens scored at once.
        trust_remote_code: whether code that comes with the model may run.
        kernels: speed-ups that may be used (`bapo.kernels`); those of a loaded model are its own.
        ignored: batch sizes, which `lm-eval` passes and packing has no use for.
    """

    def __init__(
        self,
        pretrained: str | LoadedModel = "smollm2",
        adapter: str | None = None,
        precision: Any = "auto",
        device: str | None = None,
        max_tokens: int = SCORED_TOKENS,
        trust_remote_code: bool = False,
        kernels: Kernels = "auto",
        **ignored: Any,
    ) -> None:
        super().__init__()
        self.loaded = (
            load_model(
                pretrained,
                precision=precision,
                adapter=adapter,
                device=_if_there(device),
                trust_remote_code=trust_remote_code,
            )
            if isinstance(pretrained, str)
            else pretrained
        )
        self.kernels = chosen(kernels if isinstance(pretrained, str) else pretrained.kernels)
        self.scorer = ResponseScorer(self.loaded.model, self.kernels)
        self.tokenizer = self.loaded.tokenizer
        self.max_tokens = int(max_tokens)
        self.max_length = context_length(self.loaded.model) or 2048
        self._rank, self._world_size, self._device = 0, 1, self.loaded.model.device
        self._encoded_context = lru_cache(maxsize=8)(self._encode)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For `lm-eval`'s request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, for `lm-eval`'s records."""
        return str(self.tokenizer.chat_template) if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns in the model's chat format; without a generation prompt the last turn is left open."""
        return self.loaded.chat.render(
            chat_history, add_generation_prompt=add_generation_prompt, continue_last=not add_generation_prompt
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a text that begins with the BOS token gets no second one."""
        return list(self._encoded_context(string, add_special_tokens))

    def _encode(self, string: str, add_special_tokens: bool | None) -> TokenIds:
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = False if bos and string.startswith(bos) else None
        how = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return tuple(self.tokenizer.encode(string, **how))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Encoded],
        disable_tqdm: bool = False,
        on_progress: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, nats, and whether greedy decoding would give it."""
        places: dict[TokenIds, dict[TokenIds, list[int]]] = {}
        for at, (_, context, continuation) in enumerate(requests):
            prompt, response = self._within_reach(context, continuation)
            places.setdefault(prompt, {}).setdefault(response, []).append(at)
        for prompt, responses in places.items():
            check_vocabulary(self.loaded.model, self.tokenizer, (prompt, *responses))
        prompts = sorted(places)
        groups = share_headers([TokenGroup(prompt, tuple(places[prompt])) for prompt in prompts])
        with kept_memory(self.loaded.model.device, "kept-memory" in self.kernels):
            scored = self.scorer.score(groups, max_tokens=self.max_tokens, on_progress=on_progress)
        greedy = scored.greedy.split(scored.lengths)
        logps = scored.summed().tolist()
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        by_place = iter(zip(logps, greedy, strict=True))
        for prompt in prompts:
            for places_of_text in places[prompt].values():
                logp, is_greedy = next(by_place)
                for at in places_of_text:
                    answers[at] = (logp, bool(is_greedy.all()))
        for (asked, _, _), answer in zip(requests, answers, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return answers

    def _within_reach(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[TokenIds, TokenIds]:
        """As `lm-eval`'s own model cuts: the oldest tokens go, and the last one of a response is never an input."""
        over = max(0, len(context) + len(continuation) - (self.max_length + 1))
        if over >= len(context):
            raise BapoError(
                f"A continuation of {len(continuation)} tokens leaves no room for its context in the model's "
                f"{self.max_length} positions: leave that question out."
            )
        return tuple(context[over:]), tuple(continuation)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Not offered: perplexities of whole texts share nothing that this model could share."""
        raise BapoError("The model `bapo` scores choices of a question: use --model hf for rolling perplexities.")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Not offered."""
        raise BapoError("The model `bapo` scores choices of a question: use --model hf for tasks that generate.")


def _if_there(device: str | None) -> str | None:
    if device is None or torch.device(device).type == "cpu":
        return device
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return device if accelerator is not None and accelerator.type == torch.device(device).type else None


def main() -> None:
    """`lm-eval`'s own command line, with this model registered."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except BapoError as error:
        print(f"bapo: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
