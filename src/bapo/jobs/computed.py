"""How a model is computed on this machine, in words: precision, attention, paths and speed-ups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bapo.anchoring import Probe
    from bapo.likelihood import NoiseFloor, ResponseScorer
    from bapo.models import AnyPrecision, LoadedModel

LONG = 512
"""Tokens up to which it is found out whether longer sequences fit the row as well; beyond, it would take long."""

GENERATED_ROWS = 8
"""Responses that are generated together, for the kernel that goes by their number."""


def how_it_is_computed(
    loaded: LoadedModel, scorer: ResponseScorer, asked: AnyPrecision, probe: Probe
) -> dict[str, str]:
    """What a person should know of how a model is computed here, by subject.

    Args:
        loaded: the model.
        scorer: of it.
        asked: the precision that was asked for.
        probe: by which its noise floor was measured.
    """
    from bapo.models import machine, precision_in_words

    here, causal_lm = machine(scorer.causal_lm.device), scorer.causal_lm
    size = sum(parameter.numel() for parameter in causal_lm.parameters())
    threads = f"{here['threads']} thread{'s' if here['threads'] > 1 else ''}"
    facts = {
        "class": f"{type(causal_lm).__name__}, {size / 1e6:,.3g} million numbers in memory",
        "device": f"{here['device']} ({here['processor']}, {here['instruction_set']}), {threads}",
        "precision": precision_in_words(asked, causal_lm.device),
    }
    if not scorer.has_float32:
        facts["precision"] += "; its code cannot be computed in float32, so faults below rounding cannot be seen"
    if getattr(causal_lm, "is_loaded_in_4bit", False):
        facts["4-bit weights"] = _four_bit(causal_lm)
    facts["attention"] = f"{scorer.passes.fit.own_attention} in the model's own code"
    if scorer.fallback is None:
        facts["attention"] += f"; in the row by segments ({scorer.backend})"
    facts["path"] = _path(scorer)
    facts["noise floor"] = _floors(loaded.precision, probe)
    return facts


def speed_ups(loaded: LoadedModel, scorer: ResponseScorer) -> dict[str, str]:
    """Which kernels fit the model as it is trained, how often, and which do not."""
    from bapo.kernels import KERNELS, chosen
    from bapo.kernels.kept_memory import kept_memory
    from bapo.kernels.layers import layers_by_kernel
    from bapo.kernels.packed_weights import packed_weights

    allowed, causal_lm = chosen(loaded.kernels), scorer.causal_lm
    used = {name: f"{count} layers" if count else "" for name, count in layers_by_kernel(causal_lm, allowed).items()}
    if "gradient-rows" in allowed:
        used["gradient-rows"] = "" if scorer.fallback else "the row"
    if "strands" in allowed:
        strands = 1 if scorer.fallback else scorer.passes.strands
        used["strands"] = f"{strands} side by side" if strands > 1 else ""
    if "packed-weights" in allowed:
        with packed_weights(causal_lm, GENERATED_ROWS) as count:
            used["packed-weights"] = f"{count} layers" if count else ""
    if "kept-memory" in allowed:
        with kept_memory(causal_lm.device) as kept:
            used["kept-memory"] = "this process" if kept else ""
    parts = {
        "speed-ups": ", ".join(f"{name} ({text})" for name, text in used.items() if text),
        "not in use": ", ".join(name for name, text in used.items() if not text),
        "switched off": ", ".join(name for name in KERNELS if name not in allowed),
    }
    return {name: text for name, text in parts.items() if text}


def _path(scorer: ResponseScorer) -> str:
    from bapo.likelihood import TokenGroup
    from bapo.likelihood.fit import named_lengths
    from bapo.models import context_length

    if scorer.fallback is not None:
        return f"one sequence at a time, because the shared row does not fit this architecture ({scorer.fallback})"
    config = scorer.causal_lm.config
    lengths = named_lengths(config, above=0)
    near = [length for length in lengths if length <= LONG]
    if near:
        scorer.see_lengths([TokenGroup((1,) * near[-1], ((1,),))])
    said = ["a row: all prompts and responses are computed together"]
    fit = scorer.passes.fit
    said += [f"beyond {length:,} tokens one at a time ({why})" for length, why in sorted(fit.beyond.items()) if why]
    if fit.longest is not None:
        said.append(f"beyond {fit.longest:,} tokens one at a time, because positions go by the longest sequence")
    if far := [length for length in lengths if length > LONG]:
        said.append(f"longer ones than {' and '.join(f'{length:,}' for length in far)} are compared when they come")
    if reach := context_length(scorer.causal_lm):
        said.append(f"its context is {reach:,} tokens")
    return "; ".join(said)


def _four_bit(causal_lm: Any) -> str:
    layers = [module for module in causal_lm.modules() if hasattr(getattr(module, "weight", None), "quant_state")]
    state = next((layer.weight.quant_state for layer in layers if layer.weight.quant_state is not None), None)
    if state is None:
        return f"{len(layers)} layers"
    twice = ", scales quantized too" if getattr(state, "nested", False) else ""
    kind = f"{state.quant_type} in blocks of {state.blocksize}{twice}"
    return f"{len(layers)} layers, {kind}; kept as loaded, and not repacked for the processor"


def _floors(precision: str, probe: Probe) -> str:
    def said(floor: NoiseFloor, name: str) -> str:
        return f"{floor.mean:.2g} nats in {name} (at most {floor.largest:.2g})"

    parts = [said(probe.own.floor, precision)] if probe.own else []
    parts += [said(probe.float32.floor, "float32")] if probe.float32 else []
    return f"rounding alone moves a token's log-probability by {', and by '.join(parts)}"
