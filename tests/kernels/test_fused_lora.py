"""The fused low-rank update against PEFT's own layers."""

import copy
import weakref
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bapo.kernels.fused_lora import LoraInput, SharedInputs, _LoraLinear, _LowRankUpdate, drawn_places
from bapo.kernels.gradient_rows import GradientRows, noting, rows_of
from bapo.kernels.remade import note_recipe, recipe_of
from bapo.models import add_lora
from tests.speed_up import speed_up
from tests.tiny import tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def with_random_adapter(architecture: str, **settings):
    """A PEFT model, not fused, whose adapter does something."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **{"lora_dropout": 0.0, **settings}
    )
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(architecture), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def logits_and_gradients(model):
    logits = model(input_ids=IDS).logits
    logits.float().pow(2).mean().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["llama", "phi3-fused-window", "gpt2", "gemma2-softcap-window", "opt"])
def test_the_fused_update_gives_the_numbers_of_peft(architecture):
    plain = with_random_adapter(architecture)
    fused = copy.deepcopy(plain)
    assert speed_up(fused, "fused-lora") > 0
    expected, expected_gradients = logits_and_gradients(plain)
    found, gradients = logits_and_gradients(fused)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-7)


def test_in_bf16_the_adapter_and_its_gradients_stay_float32():
    model = add_lora(tiny_model("llama").bfloat16(), rank=4, dropout=0.1)
    _, gradients = logits_and_gradients(model.train())
    assert gradients
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_the_derivative(masked):
    torch.manual_seed(0)
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (3, 5), (2, 5), (4, 2))]
    places = torch.tensor([0, 7, 7, 14]) if masked else None

    def update(result, x, a, b):
        return _LowRankUpdate.apply(result, x, a, b, LoraInput(x, places), 1.7)

    def whole_layer(weight, x, a, b):
        return _LoraLinear.apply(x, weight.detach(), None, a, b, LoraInput(x, places), 1.7)

    assert torch.autograd.gradcheck(update, inputs)
    weight = torch.randn(4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *own: whole_layer(weight, *own), inputs[1:])


def test_rows_that_no_gradient_reaches_are_left_out_and_nothing_changes():
    torch.manual_seed(0)
    x, a, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((1, 9, 5), (2, 5), (4, 2)))
    weight, places = torch.randn(4, 5, dtype=torch.float64), torch.tensor([3, 20, 44])
    upstream = torch.randn(1, 9, 4, dtype=torch.float64)
    upstream[:, 2:4] = upstream[:, 7:] = 0
    rows = GradientRows(9)
    with noting(rows):
        output = _LoraLinear.apply(x, weight, None, a, b, LoraInput(x, places), 1.7)
    expected = torch.autograd.grad(output, (x, a, b), upstream, retain_graph=True)
    rows.leave_out([slice(2, 4), slice(7, 9)])
    found = torch.autograd.grad(output, (x, a, b), upstream, retain_graph=True)
    torch.testing.assert_close(found, expected)
    rows.leave_out([slice(0, 9)])
    assert not any(gradient.any() for gradient in torch.autograd.grad(output, (x, a, b), upstream))


def test_as_many_rows_in_another_order_are_all_taken_to_have_a_gradient():
    """What a router sends to an expert is flat, and sorted by something else."""
    with noting(rows := GradientRows(9)):
        assert rows_of(torch.randn(1, 9, 5)) is rows
        assert rows_of(torch.randn(9, 5)) is not rows
        assert rows_of(torch.randn(3, 3, 5)).tokens == 9


def test_a_bias_that_is_trained_gets_its_gradient():
    plain = with_random_adapter("qwen2", bias="all")
    fused = copy.deepcopy(plain)
    speed_up(fused, "fused-lora")
    (_, expected), (_, found) = logits_and_gradients(plain), logits_and_gradients(fused)
    assert any("bias" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_places_are_drawn_with_their_probability_and_independently(probability):
    torch.manual_seed(0)
    kept = torch.ones(1000, 1001)
    kept.view(-1)[drawn_places(kept.numel(), probability, kept.device)] = 0
    deviation = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert abs((1 - kept.double().mean().item()) - probability) < 5 * deviation
    for mean, count in ((kept.double().mean(1), 1001), (kept.double().mean(0), 1000)):  # no row or column is special
        assert mean.std().item() == pytest.approx((probability * (1 - probability) / count) ** 0.5, rel=0.2)
    flat = kept.view(-1)
    for step in (1, 2, 3):  # nor does a neighbour tell anything
        both = ((1 - flat[step:]) * (1 - flat[:-step])).double().mean().item()
        assert both == pytest.approx(probability**2, abs=5 * (probability**2 / kept.numel()) ** 0.5)


def test_the_dropped_input_has_zeros_at_its_places_and_the_input_elsewhere():
    torch.manual_seed(0)
    x = torch.rand(64, 64).T + 1
    dropped = SharedInputs()(x, 0.3)
    expected = x.clone(memory_format=torch.contiguous_format).view(-1)
    expected[dropped.places] = 0
    assert torch.equal(dropped.tensor.view(-1), expected)
    assert x.all()


@pytest.mark.parametrize("count", [1, 2, 50])
def test_few_places_lie_within_the_count(count):
    for seed in range(20):
        torch.manual_seed(seed)
        places = drawn_places(count, 0.05, torch.device("cpu"))
        assert (places >= 0).all()
        assert (places < count).all()


def test_layers_that_read_the_same_input_share_a_dropped_copy_and_others_do_not():
    torch.manual_seed(0)
    drop, x, y = SharedInputs(), torch.ones(64, 64), torch.ones(64, 64)
    first = drop(x, 0.5)
    assert drop(x, 0.5) is first
    assert not torch.equal(drop(y, 0.5).tensor, first.tensor)
    assert not torch.equal(drop(x, 0.5).tensor, first.tensor)  # a later step draws anew


@pytest.mark.parametrize("masked", [False, True])
def test_an_input_that_can_be_made_again_is_made_once_for_all_layers_and_changes_nothing(masked):
    torch.manual_seed(0)
    double = partial(torch.randn, dtype=torch.float64, requires_grad=True)
    z, weights = double(3, 5), [(double(4, 5).detach(), double(2, 5), double(4, 2)) for _ in range(2)]
    places, made = torch.tensor([0, 7, 14]) if masked else None, []

    def sine(z):
        made.append(z)
        return torch.sin(z)

    def outputs(with_recipe):
        x = torch.sin(z)
        if with_recipe:
            note_recipe(x, sine, z)
        common = LoraInput(x, places)
        return torch.cat([_LoraLinear.apply(x, weight, None, a, b, common, 1.7) for weight, a, b in weights])

    trained = [z, *(w for _, a, b in weights for w in (a, b))]
    expected, found = outputs(False), outputs(True)
    upstream = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, trained, upstream)
    for passes in (1, 2):
        gradients = torch.autograd.grad(found, trained, upstream, retain_graph=True)
        assert all(map(torch.equal, gradients, expected_gradients))
        assert len(made) == passes


def test_an_input_that_was_changed_since_is_not_made_again():
    z = torch.ones(3, 5, requires_grad=True)
    x = note_recipe(torch.sin(z), torch.sin, z)
    assert recipe_of(x) is not None
    x.mul_(2)
    assert recipe_of(x) is None
    assert torch.equal(LoraInput(x).kept[0], x)
    shared = SharedInputs()
    first = shared(x, 0.0)
    assert shared(x, 0.0) is first
    x.mul_(2)
    assert shared(x, 0.0) is not first


@pytest.mark.parametrize("hooked", [False, True])  # a hooked layer is no plain product
def test_activation_checkpointing_changes_nothing(hooked):
    def gradients(checkpointed):
        fused = with_random_adapter("llama").train()
        speed_up(fused, "fused-lora")
        speed_up(fused, "lean-layers")
        for module in fused.modules():
            if hooked and hasattr(module, "base_layer"):
                module.base_layer.register_forward_hook(lambda *_: None)
        if checkpointed:
            fused.enable_input_require_grads()
            fused.gradient_checkpointing_enable({"use_reentrant": False})
        return logits_and_gradients(fused)[1]

    expected, found = gradients(False), gradients(True)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_outputs_may_be_changed_in_place_in_training():
    fused = with_random_adapter("llama").train()
    speed_up(fused, "fused-lora")
    speed_up(fused, "lean-layers")
    changed = []

    def clamp(module, inputs, output):
        changed.append(output.clamp_(-1, 1))

    for name, module in fused.named_modules():
        if name.endswith(("q_proj", "norm", "down_proj")):
            module.register_forward_hook(clamp)
    _, gradients = logits_and_gradients(fused)
    assert changed
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_nothing_of_an_input_is_kept_when_it_is_gone():
    shared, x = SharedInputs(), torch.ones(4, 4)
    kept = weakref.ref(shared(x, 0.5))
    assert kept() is not None
    del x
    assert kept() is None


def test_inference_mode_gives_the_same_numbers():
    fused = with_random_adapter("llama").eval()
    expected = fused(input_ids=IDS).logits
    speed_up(fused, "fused-lora")
    speed_up(fused, "lean-layers")
    with torch.inference_mode():
        torch.testing.assert_close(fused(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-6)


def test_dropout_follows_the_seed_and_is_off_in_evaluation():
    fused = add_lora(tiny_model("llama"), rank=4, dropout=0.5)
    for name, weight in fused.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(fused.train()(input_ids=IDS).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(fused.eval()(input_ids=IDS).logits, fused(input_ids=IDS).logits)


def test_disabled_merged_and_several_adapters_are_left_to_peft():
    plain = with_random_adapter("llama")
    fused = copy.deepcopy(plain)
    speed_up(fused, "fused-lora")
    with plain.disable_adapter(), fused.disable_adapter():
        assert torch.equal(plain(input_ids=IDS).logits, fused(input_ids=IDS).logits)
    merged = copy.deepcopy(fused).merge_and_unload()
    torch.testing.assert_close(merged(input_ids=IDS).logits, plain(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)
    for model in (plain, fused):
        torch.manual_seed(1)
        model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
        model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_layers_that_somebody_hooks_into_are_run_as_they_are():
    fused = with_random_adapter("llama")
    speed_up(fused, "fused-lora")
    expected = fused(input_ids=IDS).logits
    seen = []
    base = next(module.base_layer for module in fused.modules() if hasattr(module, "base_layer"))
    base.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    torch.testing.assert_close(fused(input_ids=IDS).logits, expected)
    assert len(seen) == 1


def test_dora_is_left_to_peft():
    plain = with_random_adapter("llama", use_dora=True)
    fused = copy.deepcopy(plain)
    speed_up(fused, "fused-lora")
    assert torch.equal(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_a_saved_adapter_loads_in_peft_alone(tmp_path):
    fused = with_random_adapter("llama")
    speed_up(fused, "fused-lora")
    fused.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    torch.testing.assert_close(alone(input_ids=IDS).logits, fused.eval()(input_ids=IDS).logits, rtol=1e-5, atol=1e-6)


def test_fusing_twice_changes_nothing():
    model = with_random_adapter("llama")
    speed_up(model, "fused-lora")
    forwards = [vars(module).get("forward") for module in model.modules()]
    speed_up(model, "fused-lora")
    assert forwards == [vars(module).get("forward") for module in model.modules()]
