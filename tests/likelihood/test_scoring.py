"""The scoring core against plain forward passes: every architecture, every layout, loss and gradients."""

from __future__ import annotations

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bapo.errors import BapoError
from bapo.kernels.gradient_rows import GradientRows
from bapo.likelihood import ResponseScorer, TokenGroup, gap_of
from tests.tiny import CONFIGS, MISFITS, VOCABULARY, tiny_model


def groups(seed: int = 0, prompts: int = 3) -> list[TokenGroup]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high)))

    return [
        TokenGroup(ids(5, 30), (*(ids(2, 25) for _ in range(rng.randint(1, 4))), ids(1, 1))) for _ in range(prompts)
    ]


def plain_logps(model: torch.nn.Module, group: TokenGroup) -> list[torch.Tensor]:
    """Independent of the library: right padding, attention mask, all logits, log-softmax, gather."""
    rows = [group.prompt + response for response in group.responses]
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logps = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    at = len(group.prompt) - 1
    return [
        torch.stack([logps[i, at + j, token] for j, token in enumerate(response)]).sum()
        for i, response in enumerate(group.responses)
    ]


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    policy = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return policy.eval()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return found


def relative_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    assert a
    total = torch.cat([(a[n] - b[n]).flatten() for n in a]).norm() / torch.cat([b[n].flatten() for n in b]).norm()
    return float(total)


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_layout_gives_the_loss_and_gradients_of_plain_padded_passes(name: str) -> None:
    torch.manual_seed(0)
    reference = with_lora(tiny_model(name))
    weights = torch.randn(64)
    batch = groups()
    plain = torch.stack([logp for group in batch for logp in plain_logps(reference, group)])
    (plain * weights[: len(plain)]).sum().backward()
    expected = gradients(reference)

    policy = with_lora(tiny_model(name))
    scorer = ResponseScorer(policy)
    assert scorer.fallback is None
    shared = scorer(batch).summed()
    (shared * weights[: len(shared)]).sum().backward()

    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    assert relative_gap(gradients(policy), expected) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_responses_without_a_gradient_are_left_out_of_the_backward_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[GradientRows] = []
    monkeypatch.setattr("bapo.likelihood.passes.GradientRows", lambda n: noted.append(GradientRows(n)) or noted[-1])
    torch.manual_seed(0)
    reference, weights, batch = with_lora(tiny_model(name)), torch.randn(64), groups()
    weights[::2] = 0  # as a hinge that is not active weighs
    plain = torch.stack([logp for group in batch for logp in plain_logps(reference, group)])
    (plain * weights[: len(plain)]).sum().backward()

    policy = with_lora(tiny_model(name))
    shared = ResponseScorer(policy)(batch).summed()
    (shared * weights[: len(shared)]).sum().backward()

    assert relative_gap(gradients(policy), gradients(reference)) < 1e-4
    quiet = [r for r, weight in zip((r for g in batch for r in g.responses), weights, strict=False) if not weight]
    reached = sum(run.stop - run.start for run in noted[-1].runs)
    assert reached == noted[-1].tokens - sum(len(response) - 1 for response in quiet) < noted[-1].tokens


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap-window"])
def test_order_company_and_sharing_do_not_change_a_logp(name: str) -> None:
    scorer = ResponseScorer(tiny_model(name))
    batch = groups(seed=3)
    together = scorer.score(batch).summed()
    alone = torch.cat([scorer.score([TokenGroup(g.prompt, (r,))]).summed() for g in batch for r in g.responses])
    backwards = scorer.score([TokenGroup(g.prompt, g.responses[::-1]) for g in batch[::-1]]).summed().flip(0)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards, together, rtol=1e-5, atol=1e-5)
    small = scorer.score(batch, max_tokens=40).summed()
    torch.testing.assert_close(small, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_architecture_takes_the_plain_path_and_is_right(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(name)
    expected = torch.stack(plain_logps(model, group := groups(prompts=1)[0]))
    scorer = ResponseScorer(model)
    assert scorer.fallback is not None
    assert "one sequence at a time" in caplog.text
    torch.testing.assert_close(scorer.score([group]).summed(), expected, rtol=1e-4, atol=1e-4)


def test_a_wrong_logit_rule_is_noticed_and_not_scored_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("granite-scaled")
    monkeypatch.setattr("bapo.likelihood.head.LogitRule.of", classmethod(lambda cls, config: cls()))
    assert "differ" in (ResponseScorer(model).fallback or "")


def test_gradient_checkpointing_changes_no_gradient() -> None:
    batch = groups(seed=5)
    found = []
    for checkpointing in (False, True):
        policy = with_lora(tiny_model("gemma2-softcap-window"))
        scorer = ResponseScorer(policy)
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            policy.enable_input_require_grads()
            policy.train()
            with pytest.raises(BapoError, match="`with` of the scorer"):
                scorer(batch)
        with scorer:
            scorer(batch).summed().sum().backward()
        found.append(gradients(policy))
    assert relative_gap(*found) < 1e-6


def test_a_trained_head_gets_its_gradient() -> None:
    batch = groups(seed=6)
    found = []
    for shared in (False, True):
        model = tiny_model("llama-tied")
        logps = (
            ResponseScorer(model)(batch).summed()
            if shared
            else torch.stack([logp for group in batch for logp in plain_logps(model, group)])
        )
        logps.sum().backward()
        found.append(gradients(model))
    assert relative_gap(found[1], found[0]) < 1e-4


def test_chunks_of_the_head_do_not_change_values_or_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = groups(seed=7)
    found = []
    for elements in (2**25, 3 * VOCABULARY):
        monkeypatch.setattr("bapo.likelihood.head.CHUNK_ELEMENTS", elements)
        policy = with_lora(tiny_model("gemma2-softcap-window"))
        logps = ResponseScorer(policy)(batch).summed()
        logps.sum().backward()
        found.append((logps.detach(), gradients(policy)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert relative_gap(found[0][1], found[1][1]) < 1e-5


def test_generation_is_what_it_was_after_a_scorer_has_been_made() -> None:
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for name in ("llama", "mistral-window", "gemma2-softcap-window", "opt"):
        model = tiny_model(name)
        before = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        ResponseScorer(model)
        after = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        assert torch.equal(before, after), name


def test_empty_prompts_and_responses_are_refused_in_a_sentence() -> None:
    with pytest.raises(BapoError, match="prompt has no tokens"):
        TokenGroup((), ((1,),))
    with pytest.raises(BapoError, match="response has no tokens"):
        TokenGroup((1,), ((1,), ()))


@pytest.mark.slow
def test_real_model_bf16_company_changes_no_more_than_rounding() -> None:
    """On the embedded model in bf16 a response scores the same alone, in a group, in strands, in any order: to the bit
    where products do not round by their rows, and within the noise floor elsewhere."""
    from bapo.models import instruction_set, load_model

    loaded = load_model("smollm2", precision="bf16", device="cpu")
    scorer = ResponseScorer(loaded.model)
    batch = [
        TokenGroup(
            loaded.chat.prompt_ids([{"role": "user", "content": question}]),
            tuple(loaded.chat.response_ids(answer) for answer in answers),
        )
        for question, answers in {
            "Why is the sky blue?": (
                "Air scatters blue light more than red light.",
                "Because.",
                "It reflects the sea.",
            ),
            "Name three fruits.": ("Apples, pears and plums.", "Bananas, cherries, and a third one that I forgot."),
        }.items()
    ]
    together = scorer.row(batch)
    alone = torch.cat([scorer.row([TokenGroup(g.prompt, (r,))]) for g in batch for r in g.responses])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        strands = scorer.score([batch[1], batch[0]]).per_response()
    finally:
        torch.set_num_threads(threads)
    in_strands = torch.cat([strands[i] for i in (2, 3, 4, 0, 1)])
    limit = 0.0 if instruction_set() == "avx512_bf16" else scorer.noise_floor(batch).limit
    assert gap_of(alone, together) <= limit
    assert gap_of(in_strands, together) <= limit
