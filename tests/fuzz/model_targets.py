"""Readers of models and all that comes with them: configuration, weights, tokenizer, template, adapter, GGUF."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.target import Target
from tests.tiny import CHATML, tiny_model, tiny_tokenizer, write_tiny_gguf

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|end|> 2 + 2?"}]


@cache
def _model_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}
        tiny_model("llama", **small).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@cache
def _adapter_files() -> dict[str, bytes]:
    from peft import get_peft_model

    from bapo.models import lora_config

    with tempfile.TemporaryDirectory() as folder:
        small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}
        adapted = get_peft_model(tiny_model("llama", **small), lora_config(4))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        adapted.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.suffix != ".md"}


def _ask(chat: Any, vocabulary: int | None = None) -> str | None:
    ids = (*chat.prompt_ids(QUESTION), *chat.response_ids("It is 4."), *chat.response_ids(""))
    if not all(isinstance(number, int) and number >= 0 for number in ids):
        return "token ids that are none"
    return None


def _model(folder: Path) -> str | None:
    from bapo.models import load_model, model_fingerprint

    loaded = load_model(str(folder), precision="float32", device="cpu")
    for name, tensor in loaded.model.state_dict().items():
        if not torch.isfinite(tensor.float()).all():
            return f"the weights {name} are not finite"
    model_fingerprint(loaded.model)
    return _ask(loaded.chat)


def _tokenizer(folder: Path) -> str | None:
    from bapo.models import ChatFormat, load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(str(folder))
    tokenizer_fingerprint(tokenizer)
    return _ask(_formatted(ChatFormat, tokenizer))


def _formatted(chat_format: Any, tokenizer: Any) -> Any:
    from types import SimpleNamespace

    from bapo.models import chat_format as of_model

    return of_model(SimpleNamespace(generation_config=None), tokenizer)


def _template(folder: Path) -> str | None:
    from bapo.models import ChatFormat
    from bapo.models.loading import chat_format  # noqa: F401

    path = folder / "chat_template.jinja"
    template = path.read_bytes().decode("utf-8", "replace") if path.is_file() else None
    tokenizer = tiny_tokenizer(template or None)
    if template is None or not template:
        return None
    return _ask(_formatted(ChatFormat, tokenizer))


def _adapter() -> Target:
    base = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    tensors = {name: tensor.clone() for name, tensor in base.state_dict().items()}

    def read(folder: Path) -> str | None:
        from bapo.models.adapters import adapter_parts, put_on

        model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
        adapted = put_on(model, str(folder), trainable=False)
        with torch.no_grad():
            for part in adapter_parts(adapted):
                if not torch.isfinite(torch.tensor(part.scaling)):
                    return "its scaling is not finite"
            logits = adapted(input_ids=torch.tensor([[1, 5, 6]])).logits
        if not torch.isfinite(logits).all():
            return "it gives no numbers"
        with adapted.disable_adapter():
            same = all(
                torch.equal(tensors[name], tensor)
                for name, tensor in adapted.get_base_model().state_dict().items()
                if name in tensors
            )
        return None if same else "it changes the model's own weights"

    files = _adapter_files()
    config = json.loads(files["adapter_config.json"])
    hostile = [
        {"target_modules": "(a+)+$"},
        {"target_modules": "(.*)*_proj.*x"},
        {"target_modules": r"(.*\.)*(.*\.)*(.*\.)*zz$"},
        {"target_modules": "["},
        {"exclude_modules": "((.*)*)*x"},
        {"r": 10**9},
        {"r": 0},
        {"r": -4},
        {"lora_alpha": 1e308},
        {"lora_alpha": 10**400},
        {"layer_replication": [[0, 10**9]]},
        {"rank_pattern": {"(.*)*(.*)*(.*)*x$": 4}},
        {"alpha_pattern": {"((([a-z._]+)*)*)*!": 4}},
        {"rank_pattern": {"q_proj": 10**9}},
        {"rank_pattern": 5},
        {"layers_pattern": "(.*)*x", "layers_to_transform": [0]},
        {"layers_pattern": [5], "layers_to_transform": [0]},
        {"modules_to_save": [""]},
        {"modules_to_save": ["((([a-z._]+)*)*)*!"]},
        {"trainable_token_indices": [10**9]},
        {"target_parameters": ["x"]},
        {"lora_dropout": 7},
        {"lora_dropout": "0.1"},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}},
        {"peft_type": "VERA"},
        {"peft_type": "BOFT"},
        {"eva_config": {}},
        {"loftq_config": {"x": 1}},
        {"corda_config": {}},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": ["x" * 100_000]},
        {"target_modules": ["q_proj"] * 100_000},
        {"task_type": "SEQ_CLS"},
        {"task_type": None},
        {"revision": 5},
        {"base_model_name_or_path": 5},
        {"runtime_config": 5},
        {"layers_to_transform": [10**30]},
    ]
    contents = tuple(json.dumps({**config, **change}).encode() for change in hostile)
    return Target("adapter", files, read, hostile=contents, of="adapter_config.json", slow=True)


def _gguf() -> Target:
    """A file of a few tensors, as llama.cpp writes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        write_tiny_gguf(path)
        content = path.read_bytes()

    def read(folder: Path) -> str | None:
        from bapo.models import cache_folder, load_model

        try:
            return _ask(load_model(str(folder / "m.gguf"), precision="float32", device="cpu").chat)
        finally:
            left = [path.name for path in (cache_folder() / "models").glob(".m-*") if path.is_dir()]
            shutil.rmtree(cache_folder() / "models", ignore_errors=True)
            assert not left, left

    return Target("gguf", {"m.gguf": content}, read, slow=True)


TEMPLATES = tuple(
    f"{CHATML}{hostile}".encode()
    for hostile in (
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ strftime_now('%Y' * 1000000) }}",
        "{{ 'x'|center(10**10) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d'|format(1) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ 'x' * 10**10 }}",
        "{{ 10**10**8 }}",
        "{{ [0] * 10**10 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set n = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[0]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[0]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
        "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ ('x\n' * 10000)|indent('y' * 100000) }}",
        "{{ ('x' * 100000)|replace('x', 'y' * 100000) }}",
        "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
        "{{ ('x' * 100000).join('y' * 100000) }}",
        "{{ ['x' * 100000] * 100000 | join }}",
        "{{ ('\t' * 100000).expandtabs(100000) }}",
        "{{ lipsum(n=100000) }}",
        "{{ messages|tojson(indent=100000000) }}",
        "{{ 'x'|batch(10**9, 'y')|list }}",
        "{{ 'x'|slice(10**9)|list }}",
        "{{ ('x' * 99999)|wordwrap(1, wrapstring='y' * 99999) }}",
        "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
        "{{ '{:{}}'.format(1, 10**10) }}",
        "{{ '{:{w}}'.format(1, w='9999999999') }}",
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'x' }}{% endmacro %}{{ f(40) }}",
        "{{ range(99999)|map('center', 99999)|list }}",
        "{{ range(99999)|map('string')|map('center', 99999)|join }}",
        "{% if ([[0] * 999] * 99999) == ([[0] * 999] * 99999) %}{% endif %}",
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
        "{{ 'a' if 'a' * 10**10 else '' }}",
        "{% while true %}{% endwhile %}",
        "{{ self.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.__class__ }}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ cycler(*range(99999)) }}",
        "{{ ('(' * 5000 + ')' * 5000)|urlize }}",
        "{{ ('<' * 99999)|striptags }}",
        "{{ (' ' * 99999 ~ 'x')|trim }}",
        "{{ ('www.' * 99999)|urlize }}",
        "{{ ('x' * 9999999)|wordcount }}",
        "{{ ('xy ' * 999999)|title }}",
        "{{ ('x' * 16777216)|selectattr('y')|list }}",
        "{{ ('x' * 16777216)|map(attribute=0)|map(attribute=0)|map(attribute=0)|list }}",
        "{{ ('x' * 16777216)|batch(1)|list }}",
        "{{ ('xyzw' * 4194304)|sort }}",
        "{{ ([{'a': 'x' * 9999999}] * 9999)|select|groupby('a') }}",
        "{{ ','.join((['x' * 9999999] * 9999)|select) }}",
        "{{ 1e308|round(999999999) }}",
        "{{ (1).__add__(1) }}",
        "{{ 5.0.hex() }}",
        "{{ 99999999999999999999|filesizeformat }}",
    )
)


def _model_target() -> Target:
    changes = (
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**9},
        {"vocab_size": 10**9},
        {"intermediate_size": 10**9},
        {"num_attention_heads": 0},
        {"head_dim": -1},
        {"head_dim": 10**9},
        {"max_position_embeddings": 10**12},
        {"rope_theta": 0},
        {"rms_norm_eps": "x"},
        {"model_type": "gpt2"},
        {"auto_map": {"AutoModelForCausalLM": "x.Y"}},
        {"quantization_config": {"quant_method": "x"}},
        {"dtype": "int8"},
        {"hidden_act": "x"},
        {"attention_dropout": "nan"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 0}},
        {"tie_word_embeddings": 5},
        {"num_hidden_layers": 0},
    )
    config = json.loads(_model_files()["config.json"])
    hostile = tuple(json.dumps({**config, **change}).encode() for change in changes)
    return Target("model", _model_files(), _model, hostile=hostile, of="config.json", slow=True)


def _tokenizer_target() -> Target:
    files = {name: content for name, content in _model_files().items() if "token" in name or "template" in name}
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    hostile = json.dumps({**json.loads(files["tokenizer.json"]), "pre_tokenizer": split}).encode()
    return Target("tokenizer", files, _tokenizer, hostile=(hostile,), of="tokenizer.json", slow=True)


def _template_target() -> Target:
    return Target("template", {"chat_template.jinja": CHATML.encode()}, _template, hostile=TEMPLATES)


MAKERS: dict[str, Callable[[], Target]] = {
    "model": _model_target,
    "tokenizer": _tokenizer_target,
    "template": _template_target,
    "adapter": _adapter,
    "gguf": _gguf,
}
