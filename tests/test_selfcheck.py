"""`bapo selfcheck`: a right model passes, and each thing that can be wrong is told by its own line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bapo.errors import BapoError
from bapo.jobs import Recipe
from bapo.jobs.selfcheck import examine, template_check
from bapo.likelihood import ResponseScorer
from bapo.models import ChatFormat, LoadedModel
from bapo.reporting import selfcheck_outcome, selfcheck_rows
from bapo.results import Check, Deviation, Selfcheck
from tests.command import bapo
from tests.faults import neighbours_prompt, off_by_one, one_percent, seen_by_the_next
from tests.rounding import rounding_by_rows
from tests.tiny import CHATML, NO_END, NO_SYSTEM, tiny_model, tiny_tokenizer

BEFORE = ["vocabulary", "chat template", "padded"]
ROWS = ["packed", "shared", "grouped"]
TRAINED = ["step 0", "training mode", "trained adapter", "saved adapter"]


def checked(
    model: Any, *, template: str | None = CHATML, tokenizer: Any = None, precision: str = "float32"
) -> dict[str, Check]:
    chat = ChatFormat(tokenizer or tiny_tokenizer(template))
    return {check.name: check for check in examine(LoadedModel("tiny", model, chat, precision), Recipe()).checks}


def wrong(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.right}


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "opt", "gemma2-softcap-window", "phi3-fused-window"])
def test_right_models_pass(name: str) -> None:
    checks = checked(tiny_model(name))
    assert list(checks) == [*BEFORE, *ROWS, *TRAINED]
    assert not wrong(checks)


def test_each_precision_has_its_deviation() -> None:
    checks = checked(tiny_model("llama").to(torch.bfloat16), precision="bf16")
    assert not wrong(checks)
    for name in ("padded", *ROWS, "trained adapter"):
        own, exact = checks[name].deviations
        assert (own.precision, exact.precision) == ("bf16", "float32")
        assert exact.limit < own.limit, "what is smaller than bf16 rounds is seen in float32"


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_right_models_pass_where_the_number_of_rows_decides_how_products_round(name: str) -> None:
    with rounding_by_rows():
        assert not wrong(checked(tiny_model(name).to(torch.bfloat16), precision="bf16"))


def test_a_model_that_takes_the_plain_path_is_right_and_says_why() -> None:
    loaded = LoadedModel("tiny", tiny_model("bloom-alibi"), ChatFormat(tiny_tokenizer()), "float32")
    page = examine(loaded, Recipe())
    assert [check.name for check in page.checks] == [*BEFORE, "one at a time", *TRAINED]
    assert page.right
    assert page.facts["path"].startswith("one sequence at a time, because")
    assert "strands" in page.facts["not in use"]


@pytest.mark.parametrize(
    ("fault", "rows"),
    [(off_by_one, ROWS), (seen_by_the_next, ["shared", "grouped"]), (neighbours_prompt, ["packed", "grouped"])],
)
def test_wrong_layouts_are_told_by_the_rows_that_they_are_in(fault: Callable[..., Any], rows: list[str]) -> None:
    ResponseScorer(model := tiny_model("llama"))  # whose probe finds nothing yet
    with fault(model):
        checks = checked(model)
    assert wrong(checks) == {*rows, "trained adapter"}
    assert all("times what rounding explains" in checks[name].verdict for name in wrong(checks))


def test_a_policy_that_is_not_its_reference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import bapo.models

    original = bapo.models.add_lora
    with ExitStack() as undo:

        def with_a_fault(model: Any) -> Any:
            policy = original(model)
            undo.enter_context(one_percent(policy))
            return policy

        monkeypatch.setattr(bapo.models, "add_lora", with_a_fault)
        assert wrong(checked(tiny_model("llama"))) == {"step 0"}


def test_an_adapter_that_changes_when_it_is_saved_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    original = PeftModel.save_pretrained

    def save(policy: Any, folder: str, **more: Any) -> None:
        original(policy, folder, **more)
        path = Path(folder) / "adapter_model.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)

    monkeypatch.setattr(PeftModel, "save_pretrained", save)
    assert wrong(checked(tiny_model("llama"))) == {"saved adapter"}


def test_what_cannot_be_trained_is_told() -> None:
    checks = checked(tiny_model("mamba-recurrent"))
    assert wrong(checks) == {"training"}
    assert "cannot be trained" in checks["training"].verdict


OPENS_MORE = CHATML.replace(
    "{% if add_generation_prompt %}<|assistant|>", "{% if add_generation_prompt %}<|assistant|>[ ]"
)
SWALLOWS = CHATML.replace("m.content", "m.content.split(' ')[:3] | join(' ')")
SWALLOWS_ANSWERS = CHATML.replace("m.content", "m.content if m.role != 'assistant' else m.content[:12]")


@pytest.mark.parametrize(
    ("template", "right", "words"),
    [
        (CHATML, True, "right in all of 12 conversations"),
        (NO_SYSTEM, True, "right in all of 12 conversations"),
        (NO_END, True, "right in all of 12 conversations"),
        (None, True, "right in all of 8 conversations"),
        (OPENS_MORE, True, "in 12 the template writes something else"),
        (SWALLOWS, False, "WRONG in 12 of 12 conversations: the template leaves out or changes words of a prompt"),
        (
            SWALLOWS_ANSWERS,
            False,
            "WRONG in 12 of 12 conversations: the template leaves out or changes words of a resp",
        ),
    ],
)
def test_the_chat_template(template: str | None, right: bool, words: str) -> None:
    loaded = LoadedModel("tiny", None, ChatFormat(tiny_tokenizer(template)), "float32")
    check = template_check(loaded)
    assert check.right == right
    assert words in check.verdict


def test_a_response_that_is_not_the_templates_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a token were lost at the boundary."""
    from bapo.models import splits

    original = ChatFormat.response_ids
    monkeypatch.setattr(ChatFormat, "response_ids", lambda *arguments: original(*arguments)[1:])
    seen = splits(ChatFormat(tiny_tokenizer()))
    assert (seen.tried, seen.clean, len(seen.faults)) == (12, 0, 12)
    assert "where the template writes" in seen.faults[0]


def test_tokens_without_embeddings_are_told_and_refused_where_they_occur() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    checks = checked(tiny_model("llama"), tokenizer=tokenizer)
    assert wrong(checks) == {"vocabulary"}
    assert "1 tokens have none, e.g. '<extra>'" in checks["vocabulary"].verdict
    tokenizer.eos_token = "<extra>"
    with pytest.raises(BapoError, match="'<extra>' has the id 260, and the model has embeddings for 260 tokens"):
        checked(tiny_model("llama"), tokenizer=tokenizer)


def test_a_padded_batch_that_cannot_be_computed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    original = type(model).forward

    def forward(self: Any, *arguments: Any, attention_mask: Any = None, **more: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 2 and not attention_mask.all():
            raise ValueError("no padding, please")
        return original(self, *arguments, attention_mask=attention_mask, **more)

    monkeypatch.setattr(type(model), "forward", forward)
    checks = checked(model)
    assert wrong(checks) == {"padded"}
    assert "no padding, please" in checks["padded"].verdict


def test_numbers_that_are_none_are_wrong() -> None:
    deviation = Deviation("bf16", float("nan"), float("nan"), 0.01, 0.02)
    check = Check("packed", "one row", deviation.right, "WRONG: no number", (deviation,))
    page = Selfcheck("tiny", None, {}, (check,), "2 tokens", 1.0)
    assert not page.right
    assert selfcheck_rows(page)[0] == ("packed", "bf16", "nan", "nan", "0.01", "0.02", "WRONG: no number")
    assert selfcheck_outcome(page) == "Not all right: 1 of 1 checks (packed); see their verdicts (1 s)."


def saved(folder: Path, tokenizer: Any) -> Path:
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_command_prints_one_page_and_ends_with_one_code(tmp_path: Path) -> None:
    good = str(saved(tmp_path / "good", tiny_tokenizer()))
    page = bapo("selfcheck", good, "--precision", "float32", "--kernels", "lean-layers", cwd=tmp_path).stdout
    for words in (*BEFORE, *ROWS, *TRAINED, "float32, as asked for", "switched off", "noise floor", "All right: "):
        assert words in page
    assert page.count("WRONG") == 0
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    bad = str(saved(tmp_path / "bad", tokenizer))
    result = json.loads(bapo("selfcheck", bad, "--precision", "float32", "--json", cwd=tmp_path, code=1).stdout)
    assert result["right"] is False
    assert [check["name"] for check in result["checks"] if not check["right"]] == ["vocabulary"]
    refused = bapo("selfcheck", str(tmp_path / "nowhere"), cwd=tmp_path, code=2).stderr
    assert "There is no model folder" in refused


def test_an_adapter_is_checked_with_its_model(tmp_path: Path) -> None:
    from bapo.models import add_lora

    folder = saved(tmp_path / "model", tiny_tokenizer())
    policy = add_lora(tiny_model("llama"), rank=4)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    policy.save_pretrained(tmp_path / "adapter")
    arguments = ["selfcheck", str(folder), "--adapter", str(tmp_path / "adapter"), "--json"]
    result = json.loads(bapo(*arguments, cwd=tmp_path).stdout)
    assert result["adapter"] == str(tmp_path / "adapter")
    assert "fused-lora (28 layers)" in result["facts"]["speed-ups"]


@pytest.mark.slow
def test_the_embedded_model_passes(tmp_path: Path) -> None:
    result = json.loads(bapo("selfcheck", "smollm2", "--precision", "float32", "--json", cwd=tmp_path).stdout)
    assert result["right"], [check for check in result["checks"] if not check["right"]]
    assert [check["name"] for check in result["checks"]] == [*BEFORE, *ROWS, *TRAINED]
    assert "a row: all prompts and responses" in result["facts"]["path"]
