"""The scoring core against plain forward passes: every architecture, every layout, loss and gradients."""

from __future__ import annotations

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bapo.errors import BapoError
from bapo.kernels.gradient_rows import GradientRows
from bapo.likelihood import ResponseScorer, TokenGroup, gap_of, share_headers
from bapo.likelihood.layout import by_token_budget, lay_out
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


def test_a_row_has_headers_and_prompts_once_and_continues_their_positions() -> None:
    """Two prompts behind one header, one behind another, one behind none; two of the responses have one token."""
    batch = [
        TokenGroup((3,), ((4, 5), (6,)), header=(1, 2)),
        TokenGroup((7, 8), ((9, 10, 11),), header=(1, 2)),
        TokenGroup((13,), ((14,),), header=(12,)),
        TokenGroup((15, 16), ((17, 18),)),
    ]
    row = lay_out(batch)
    assert row.input_ids.tolist() == [[1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 15, 16, 17]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5, 0, 1, 0, 1, 2]]
    assert row.segments.lengths == (2, 1, 1, 0, 2, 2, 1, 1, 0, 2, 1)
    assert row.segments.parents == (-1, 0, 1, 1, 0, 4, -1, 6, 7, -1, 9)
    assert row.source_P.tolist() == [2, 3, 2, 5, 6, 7, 9, 11, 12]
    assert row.target_P.tolist() == [4, 5, 6, 9, 10, 11, 14, 17, 18]
    assert row.places == (slice(3, 4), slice(4, 4), slice(6, 8), slice(10, 10), slice(12, 13))
    for tensor in (row.input_ids, row.source_P):
        assert tensor.device.type == "cpu"
    row = lay_out(batch, "meta")
    for tensor in (row.input_ids, row.position_ids, row.source_P, row.target_P):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize(
    ("header", "most", "sizes"),
    [
        ((), 5, [1, 1, 1, 1, 1]),
        ((), 6, [2, 2, 1]),
        ((), 2, [1, 1, 1, 1, 1]),
        ((), 15, [5]),
        ((), 14, [4, 1]),
        ((9, 9, 9, 9), 10, [2, 2, 1]),  # 4 + 3 + 3; each batch has the header once
        ((9, 9, 9, 9), 9, [1, 1, 1, 1, 1]),
        ((9, 9, 9, 9), 12, [2, 2, 1]),
        ((9, 9, 9, 9), 19, [5]),
    ],
)
def test_batches_keep_to_a_budget_of_tokens(header: tuple[int, ...], most: int, sizes: list[int]) -> None:
    batch = [TokenGroup((number, 1), ((3, 4),), header=header) for number in range(5)]  # 3 tokens each
    found = list(by_token_budget(batch, most))
    assert [len(part) for part in found] == sizes
    assert [group for part in found for group in part] == batch
    for part in found:
        assert len(part) == 1 or lay_out(part).tokens <= most


def test_another_header_counts_anew() -> None:
    batch = [TokenGroup((1, 2), ((3, 4),), header=(number,) * 4) for number in (8, 8, 9, 9)]  # rows of 10 and 10
    assert [len(part) for part in by_token_budget(batch, 17)] == [3, 1]
    assert [len(part) for part in by_token_budget(batch, 16)] == [2, 2]
    assert [len(part) for part in by_token_budget(batch, 20)] == [4]


@pytest.mark.parametrize(
    ("common", "headers"),
    [
        ([8], [8, 8]),
        ([7], [0, 0]),
        ([20, 10], [10, 10, 10]),  # half of what the run shares
        ([20, 9], [20, 20, 0]),
        ([20, 9, 9], [20, 20, 9, 9]),
        ([10, 20], [10, 10, 10]),
        ([20, 12, 8], [8, 8, 8, 8]),
        ([3, 20, 2, 9, 30], [0, 20, 20, 9, 9, 9]),
        ([30, 2, 20, 3, 12], [30, 30, 20, 20, 12, 12]),
        ([2, 3], [0, 0, 0]),
        ([], [0]),
    ],
)
def test_neighbours_share_the_beginning_that_their_run_has_in_common(common: list[int], headers: list[int]) -> None:
    """Each prompt begins as the one before it does, for so many tokens, and goes on otherwise."""
    prompts = [tuple(range(100, 140))]
    for number, shared in enumerate(common, start=1):
        prompts.append((*prompts[-1][:shared], *range(1000 * number, 1000 * number + 40 - shared)))
    batch = [TokenGroup(prompt, ((number,),)) for number, prompt in enumerate(prompts)]
    found = share_headers(batch)
    assert [len(group.header) for group in found] == headers
    assert [group.header + group.prompt for group in found] == prompts
    assert [group.responses for group in found] == [group.responses for group in batch]


def test_a_shared_header_leaves_every_prompt_a_token() -> None:
    prompt = tuple(range(12))
    for others in (prompt, (*prompt, 5, 6), prompt[:10]):
        found = share_headers([TokenGroup(prompt, ((1,),)), TokenGroup(others, ((2,),))])
        assert [group.header for group in found] == [prompt[: min(len(prompt), len(others)) - 1]] * 2
    assert share_headers([]) == []


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
