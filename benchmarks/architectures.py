"""Every causal language model of the installed transformers, made tiny: does bapo score and train what it computes?

For each family, in float32 and bf16, with and without a LoRA adapter that is not zero, scores and gradients of
`ResponseScorer` with all speed-ups on are compared with the model's own forward pass (eager attention, one unpadded
sequence at a time), by the judgement that the library uses for a user's model. Sequences go beyond the windows, chunks
and rotary thresholds of the configuration. Weights are drawn so that a wrong layout would show: with positions, mask or
prompt broken on purpose log-probs must move by a hundred noise floors. A family is right on the row, right up to a
length and beyond it on the plain path, right on the plain path, refused with a reason, or wrong.

    python benchmarks/architectures.py [llama phimoe+window ...] [--json found.jsonl] [--markdown table.md]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import multiprocessing
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from tests.architectures import VOCABULARY, cases, tiny
from tests.faults import neighbours_prompt, off_by_one, seen_by_the_next
from torch import Tensor

from bapo.errors import BapoError, first_line
from bapo.likelihood import ResponseScorer, TokenGroup, evaluating, gap_of, judge, passes
from bapo.likelihood.noise import nudged
from bapo.models import add_lora, disable_model_dropout, steady_length
from bapo.reporting import markdown_table

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}

FLOORS = 100
"""Noise floors by which a layout that is wrong on purpose must move log-probs."""

SPREADS = (0.2, 0.4, 0.1, 0.8, 0.05)
"""Standard deviations of weights, tried in turn until wrong layouts show."""

FAULTS = {"positions": off_by_one, "mask": seen_by_the_next, "neighbour": neighbours_prompt}

UNORDERED = "does not depend on positions"

WRONG, REFUSED, PLAIN, LONG, ROW = "wrong", "refused", "plain path", "row, long ones on the plain path", "row"
PATHS = (ROW, LONG, PLAIN, REFUSED, WRONG)


@dataclass
class Finding:
    """What came out for one family.

    Attributes:
        case: its model type, and the variant of its configuration.
        family: its class.
        path: one of `PATHS`.
        why: the reason for the path.
        told: noise floors by which log-probs move with each fault.
        spread: standard deviation of the weights.
        checks: comparisons that were made.
        seconds: that it took.
    """

    case: str
    family: str = ""
    path: str = WRONG
    why: str = ""
    told: dict[str, float] | None = None
    spread: float = 0.0
    checks: int = 0
    seconds: float = 0.0


def groups(seed: int = 0) -> list[TokenGroup]:
    """Short and long prompts in turn, responses of many lengths, on both sides of each threshold."""
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, VOCABULARY) for _ in range(length))

    return [  # few lengths, because a CPU plans each product of a new shape for longer than it computes it
        TokenGroup(ids(9), (ids(6), ids(6), ids(1))),
        TokenGroup(ids(26), (ids(12), ids(12))),
        TokenGroup(ids(7), (ids(8), ids(8))),
        TokenGroup(ids(32), (ids(6),)),
    ]


GROUPS = groups()


@dataclass
class Numbers:
    """(P,) log-probs of all response tokens, and the gradient of their weighted sums, flat."""

    tokens: Tensor
    gradient: Tensor


def weighted(parts: Sequence[Tensor]) -> Tensor:
    """Of one response in three nothing is wanted, as of a base response whose hinge is not active."""
    weights = torch.randn(len(parts), generator=torch.Generator().manual_seed(1))
    weights[::3] = 0
    return (torch.stack([part.sum() for part in parts]) * weights).sum()


def gradient_of(model: Any) -> Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    zero = torch.zeros(())
    return torch.cat([(zero.expand(p.shape) if p.grad is None else p.grad).float().flatten() for p in trained])


def own_numbers(
    model: Any, asked: Sequence[TokenGroup], *, eager: bool = True, nudge: bool = False, gradient: bool = True
) -> Numbers:
    """By the model's own code, as if it had computed nothing before; sequences in the order of their lengths."""
    if steady_length(model.config) is not None:
        model = copy.deepcopy(model)  # what it computes stays with it
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = causal_lm.config._attn_implementation
    with suppress(Exception):  # some families have no such choice
        causal_lm.set_attn_implementation("eager" if eager else "sdpa")
    embeddings = causal_lm.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, inputs, output: nudged(output) if nudge else output)
    sequences = [(group.prompt, response) for group in asked for response in group.responses]
    parts: dict[int, Tensor] = {}
    for at in sorted(range(len(sequences)), key=lambda at: len(sequences[at][0] + sequences[at][1])):
        prompt, response = sequences[at]
        logits = causal_lm(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        logps = logits.float().log_softmax(-1)
        parts[at] = torch.stack([logps[len(prompt) - 1 + i, token] for i, token in enumerate(response)])
    hook.remove()
    with suppress(Exception):
        causal_lm.set_attn_implementation(attention)
    in_order = [parts[at] for at in range(len(sequences))]
    if not gradient:
        return Numbers(torch.cat(in_order).detach(), torch.zeros(0))
    weighted(in_order).backward()
    found = Numbers(torch.cat(in_order).detach(), gradient_of(model))
    model.zero_grad()
    return found


def sped_up(model: Any) -> Any:
    """As the trainer has its policy."""
    policy = copy.deepcopy(model)
    disable_model_dropout(policy)
    return policy


@contextmanager
def in_two_strands() -> Iterator[None]:
    """Whatever number of threads there is."""
    original = passes.strands_for
    passes.strands_for = lambda model: 2
    try:
        yield
    finally:
        passes.strands_for = original


class DisagreementError(Exception):
    """The library's numbers are not the model's own."""


def own_passes(model: Any, asked: Sequence[TokenGroup], dtype: torch.dtype) -> dict[str, Numbers]:
    """The model's own numbers, and again where rounding has moved them: everywhere, in attention, and in the adapter's
    products, which the library computes in the model's precision."""
    passes = {"plain": own_numbers(model, asked), "nudged": own_numbers(model, asked, nudge=True)}
    if dtype != torch.float32:
        passes["sdpa"] = own_numbers(model, asked, eager=False)
    if dtype != torch.float32 and hasattr(model, "get_base_model"):
        adapter = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
        precise = [parameter.data for parameter in adapter]
        for parameter in adapter:
            parameter.data = parameter.data.to(dtype)
        passes["adapter rounded"] = own_numbers(model, asked)
        for parameter, data in zip(adapter, precise, strict=True):
            parameter.data = data
    return passes


def check(what: str, found: Tensor, own: dict[str, Numbers], dtype: torch.dtype) -> None:
    which = "gradient" if what == "gradients" else "tokens"
    verdict = judge(found, {name: getattr(numbers, which) for name, numbers in own.items()}, dtype)
    if not verdict.right:
        raise DisagreementError(f"{what}: {verdict}")


def examine_in(model: Any, asked: list[TokenGroup], dtype: torch.dtype) -> tuple[ResponseScorer, int, str]:
    """Compare everything for one model: the scorer, how many comparisons were made, and why it is not trained, if so.

    Raises:
        DisagreementError: something is not what the model itself computes.
    """
    policy = sped_up(model)
    own, untrained, made = own_passes(model, asked, dtype), "", 2
    with in_two_strands():
        scorer = ResponseScorer(policy)
        check("scores", scorer.score(asked).tokens, own, dtype)
        turned = scorer.score(asked[::-1]).per_response()
        try:
            scorer.check_training_mode()
        except BapoError as error:
            untrained = f"not trained: {error}"
        else:
            policy.train()
            scored = scorer(asked)
            weighted(scored.per_response()).backward()
            check("scores in training mode", scored.tokens.detach(), own, dtype)
            check("gradients", gradient_of(policy), own, dtype)
            made += 2
    lengths = [len(group.responses) for group in asked[::-1]]
    by_group = [turned[sum(lengths[:at]) : sum(lengths[: at + 1])] for at in range(len(lengths))]
    check("scores in another order", torch.cat([t for part in by_group[::-1] for t in part]), own, dtype)
    if dtype != torch.float32:
        found, exact = scorer.float32(asked), model.float()
        with torch.no_grad():
            passes = {
                name: own_numbers(exact, asked, nudge=name == "nudged", gradient=False) for name in ("plain", "nudged")
            }
        check("scores of bf16 weights in float32", found, passes, torch.float32)
        made += 1
    return scorer, made, untrained


def by_fault(model: Any) -> dict[str, float]:
    """Noise floors by which log-probs move with each fault, in float32; on the plain path, where the prompt is another
    one or a response stands behind another."""
    with torch.no_grad():
        own, again = (own_numbers(model, GROUPS, nudge=nudge, gradient=False).tokens for nudge in (False, True))
    floor = max(gap_of(own, again), 1e-12)
    scorer = ResponseScorer(sped_up(model))
    if scorer.fallback is None:
        scored: dict[str, Tensor] = {}
        for name, broken in FAULTS.items():
            with broken(scorer.model), torch.no_grad(), evaluating(scorer.model):
                scored[name] = scorer.passes.in_row(GROUPS, 1).tokens
    else:
        other = [
            TokenGroup(before.prompt, group.responses)
            for before, group in zip(GROUPS[-1:] + GROUPS, GROUPS, strict=False)
        ]
        seeing = [TokenGroup((*group.prompt, 7, 8, 9), group.responses) for group in GROUPS]
        scored = {"neighbour": scorer.score(other).tokens, "mask": scorer.score(seeing).tokens}
    return {name: gap_of(tokens, own) / floor for name, tokens in scored.items()}


def with_adapter(model: Any) -> Any:
    adapted = add_lora(model, rank=4, alpha=8, dropout=0.0)
    for layer in adapted.modules():
        vars(layer).pop("forward", None)  # the reference has PEFT's own
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return adapted.eval()


def drawn(case: str) -> tuple[float, dict[str, float]]:
    """The spread of weights with which faults show, and how far they do."""
    best: tuple[float, dict[str, float]] = (0.0, {})
    for spread in SPREADS:
        told = by_fault(tiny(case, spread))
        if min(told.values()) > min(best[1].values(), default=-1.0):
            best = spread, told
        if min(told.values()) >= FLOORS:
            break
    return best


def examine(case: str, precisions: Sequence[str] = tuple(PRECISIONS)) -> Finding:
    finding = Finding(case)
    try:
        model = tiny(case)
    except Exception as error:
        finding.path, finding.why = REFUSED, f"not made tiny: {first_line(error)[:160]}"
        return finding
    finding.family = type(model).__name__
    try:
        with torch.no_grad():
            once, again = (own_numbers(model, GROUPS, gradient=False).tokens for _ in range(2))
    except Exception as error:
        finding.path, finding.why = REFUSED, f"does not compute tokens alone: {first_line(error)[:160]}"
        return finding
    if not torch.equal(once, again):
        finding.path, finding.why = REFUSED, "not compared: its own numbers differ from pass to pass"
        return finding
    try:
        finding.spread, finding.told = drawn(case)
        _compare(finding, [PRECISIONS[name] for name in precisions])
    except BapoError as error:
        finding.path, finding.why = REFUSED, str(error)
    except DisagreementError as error:
        finding.path, finding.why = WRONG, str(error)
    except Exception as error:
        finding.path, finding.why = WRONG, f"breaks off: {type(error).__name__}: {first_line(error)[:200]}"
    return finding


def _compare(finding: Finding, dtypes: Sequence[torch.dtype]) -> None:
    ways: list[tuple[str, str]] = []
    without = unable = ""
    for dtype in dtypes:
        for adapted in (False, True):
            try:
                model = made(finding, dtype, adapted=adapted)
            except Exception as error:
                without = f"PEFT puts no adapter on it ({first_line(error)[:120]})"
                continue
            scorer, count, untrained = examine_again(finding, model, dtype, adapted=adapted)
            ways.append(way_of(scorer))
            finding.checks += count
            unable = unable or untrained
    finding.path, why = max(ways, key=lambda way: PATHS.index(way[0]))
    assert finding.told is not None
    untold = [name for name, floors in finding.told.items() if floors < FLOORS]
    if untold == ["positions"] and finding.told["positions"] < 1:
        without = "; ".join(filter(None, (without, UNORDERED)))
    elif untold:
        raise DisagreementError(f"a fault does not show ({finding.told})")
    finding.why = "; ".join(filter(None, (why, unable, without)))


def made(finding: Finding, dtype: torch.dtype, *, adapted: bool) -> Any:
    """The model, with an adapter that it can compute with, if one is asked for."""
    model = tiny(finding.case, finding.spread, dtype=dtype)
    if adapted:
        model = with_adapter(model)
        with torch.no_grad():
            own_numbers(model, GROUPS, gradient=False)
    return model


def examine_again(
    finding: Finding, model: Any, dtype: torch.dtype, *, adapted: bool
) -> tuple[ResponseScorer, int, str]:
    """Examine a model; what fails in bf16 is asked again of other sequences, where a fault fails again.

    The elements of a gradient share their rounding errors, so that rounding alone fails more often than the judgement,
    which takes them one by one, allows for.
    """
    seeds = (0,) if dtype == torch.float32 else (0, 1, 2)
    for seed in seeds:
        try:
            return examine_in(model, groups(seed), dtype)
        except DisagreementError as error:
            if seed == seeds[-1]:
                adapter = "with" if adapted else "without"
                raise DisagreementError(f"{dtype}, {adapter} adapter, {error}") from error
            model = made(finding, dtype, adapted=adapted)
    raise AssertionError


def way_of(scorer: ResponseScorer) -> tuple[str, str]:
    """How the scorer has scored the groups, and why."""
    beyond = [misfit for misfit in scorer.passes.fit.beyond.values() if misfit]
    if scorer.fallback is not None:
        return PLAIN, scorer.fallback
    if beyond:
        return LONG, f"beyond a window or chunk: {beyond[0]}"
    return (ROW, "") if scorer.passes.fit.longest is None else (LONG, "rotary frequencies go by the longest position")


def _in_process(case: str, precisions: Sequence[str], pipe: Any) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    gc.freeze()  # what has been imported is not looked through again and again
    started = time.perf_counter()
    finding = examine(case, precisions)
    finding.seconds = round(time.perf_counter() - started, 1)
    pipe.send(finding)


def found(case: str, precisions: Sequence[str], timeout: float, context: Any) -> Finding:
    """What comes out in a process of its own: a crash or an endless loop ends that one alone."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(case, precisions, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(timeout):
            return ours.recv()
        return Finding(case, path=WRONG, why=f"takes longer than {timeout:.0f} seconds")
    except EOFError:
        process.join(10)
        return Finding(case, path=WRONG, why=f"ends its process (exit code {process.exitcode})")
    finally:
        process.kill()
        process.join()


def table(findings: Sequence[Finding]) -> str:
    """The page's table: a line for each family, in the order of paths."""
    lines = [
        [one.case, one.family, one.path, one.why.replace("|", "/"), f"{min(one.told.values()):.0f}" if one.told else ""]
        for one in sorted(findings, key=lambda one: (PATHS.index(one.path), one.case))
    ]
    return markdown_table(["model type", "class", "path", "reason", "floors"], lines)


def summary(findings: Sequence[Finding]) -> str:
    counted = Counter(one.path for one in findings)
    return f"{len(findings)} tried: " + ", ".join(f"{counted[path]} {path}" for path in PATHS)


def run(
    names: Sequence[str], precisions: Sequence[str], timeout: float, tell: Callable[[Finding], None]
) -> list[Finding]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.architectures", "tests.faults", "bapo.training", "peft"])
    findings = []
    for case in names:
        findings.append(found(case, precisions, timeout, context))
        tell(findings[-1])
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="model types, with a variant behind a +; all by default")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for each")
    parser.add_argument("--json", type=Path, help="file that gets a line for each")
    parser.add_argument("--markdown", type=Path, help="file that gets the table")
    told = parser.parse_args()
    lines = told.json.open("w") if told.json else None

    def tell(finding: Finding) -> None:
        print(f"{finding.case}: {finding.path} {finding.why} {finding.told} {finding.seconds} s", flush=True)
        if lines is not None:
            print(json.dumps(asdict(finding)), file=lines, flush=True)

    findings = run(told.cases or cases(), told.precisions, told.timeout, tell)
    if told.markdown:
        told.markdown.write_text(table(findings) + "\n")
    print(summary(findings))
    sys.exit(any(finding.path == WRONG for finding in findings))


if __name__ == "__main__":
    main()
