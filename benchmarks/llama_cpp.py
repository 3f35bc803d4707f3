"""A GGUF model's log-probs as `bapo` loads it, beside llama.cpp's, token by token.

llama.cpp computes with the file as it is, and so rounds what goes into its quantized products to 8 bits; and with the
same weights written as float32, where nothing is left but the order of sums.

    pip install xllamacpp        # llama.cpp, built
    python benchmarks/llama_cpp.py [--model smollm2 | file.gguf]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bapo.likelihood import ResponseScorer, TokenGroup
from bapo.models import load_model
from bapo.models.embedded import EMBEDDED_MODEL, embedded_gguf
from bapo.reporting import markdown_table

CONVERSATIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How do I sort a list in Python?", "Use the built-in sorted() function: sorted(my_list)."),
    ("Name a red fruit.", "An apple, or a strawberry if you like small ones."),
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default=EMBEDDED_MODEL)
    model = arguments.parse_args().model
    file = embedded_gguf() if model == EMBEDDED_MODEL else Path(model)
    loaded = load_model(model, precision="float32", device="cpu")
    turns = [([{"role": "user", "content": question}], text) for question, text in CONVERSATIONS]
    groups = [
        TokenGroup(loaded.chat.prompt_ids(prompt), (loaded.chat.response_ids(text, prompt),)) for prompt, text in turns
    ]
    ours = np.concatenate([logps.numpy() for logps in ResponseScorer(loaded.model).score(groups).per_response()])
    rows = []
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "float32.gguf"
        write_float32(file, whole)
        for name, path in (("as it is", file), ("as float32", whole)):
            theirs = np.asarray([logp for group in groups for logp in of_llama_cpp(path, group)])
            gaps = np.abs(ours - theirs)
            rows.append(
                (
                    name,
                    f"{len(gaps)}",
                    f"{ours.sum():.3f}",
                    f"{theirs.sum():.3f}",
                    f"{gaps.mean():.4f}",
                    f"{gaps.max():.4f}",
                )
            )
    head = ("weights", "tokens", "bapo, nats", "llama.cpp, nats", "mean gap", "largest gap")
    print(markdown_table(head, rows))


def write_float32(file: Path, target: Path) -> None:
    """The same model with every weight as float32."""
    import gguf

    read = gguf.GGUFReader(file)
    written = gguf.GGUFWriter(target, read.fields["general.architecture"].contents())
    for field in read.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        value = 0 if field.name == "general.file_type" else field.contents()  # 0 says float32
        written.add_key_value(field.name, value, kind, sub_type=field.types[-1] if len(field.types) > 1 else None)
    for tensor in read.tensors:
        written.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()


def of_llama_cpp(file: Path, group: TokenGroup) -> list[float]:
    """The log-probs of a response's tokens, each asked for as the next one behind all before it."""
    import xllamacpp

    how: Any = xllamacpp.CommonParams()
    how.model.path = str(file)
    how.n_ctx, how.n_parallel, how.n_gpu_layers = 1024, 1, 0
    how.cache_type_k = how.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server, (response,) = xllamacpp.Server(how), group.responses
    asked = {"n_predict": 1, "n_probs": 10_000, "temperature": 1.0, "samplers": [], "cache_prompt": True}
    logps = []
    for at, token in enumerate(response):
        said = server.handle_completions({**asked, "prompt": [*group.prompt, *response[:at]]})
        said = json.loads(said) if isinstance(said, str) else said
        likeliest = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logps.append(next(one["logprob"] for one in likeliest if one["id"] == token))
    return logps


if __name__ == "__main__":
    main()
