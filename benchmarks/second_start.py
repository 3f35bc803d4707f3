"""What a second start costs, and how much memory a start takes, by how many prompt groups there are.

For each size a file of made-up comparisons, one a prompt, and a tiny random model. Every start is a process of its own,
whose imports are done, so that what is left is the work: `data` reads and sums up; `anchor` generates and scores; the
same again, of which everything is done; `train`, which takes one step on what is anchored and so needs all of it, and
is interrupted before it saves; the same again, which goes on from its checkpoint; and `train` on the first hundred of
them alone, which must not cost more in a larger store.
Of each: the seconds, in parentheses those in which a processor was at work, and the most memory.

    python benchmarks/second_start.py [100 10000 50000] [--model folder] [--keep folder]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers

from bapo.jobs import Recipe, job, read_recipe
from bapo.preferences import read_preferences, summarize
from bapo.reporting import markdown_table

WORDS = ("sun", "rain", "tea", "house", "dog", "river", "small", "quick", "green", "music", "paper", "stone", "winter")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

FEW = 100


class Cost(NamedTuple):
    """Seconds that passed, those in which a processor was at work, and the most memory that the process had, in MB."""

    seconds: float
    at_work: float
    peak: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s ({self.at_work:.1f} s), {self.peak:,.0f} MB"


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Cost:
    """What it costs to do something once, in a fork of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        start = time.perf_counter()
        work(*arguments)
        used = resource.getrusage(resource.RUSAGE_SELF)
        sender.send(Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))

    process = context.Process(target=run)
    process.start()
    sender.close()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}")
    return receiver.recv()


def write_model(folder: Path) -> None:
    """A tiny model of random weights, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **marks)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(letters), max_position_embeddings=512, **sizes, **ids)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_comparisons(path: Path, groups: int) -> None:
    rng = random.Random(groups)
    with path.open("w") as file:
        for at in range(groups):
            prompt, chosen, rejected = (" ".join(rng.choices(WORDS, k=words)) for words in (3, 4, 5))
            row = {"prompt": f"Number {at}: {prompt}?", "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(row) + "\n")


def sum_up(source: str) -> None:
    summarize(read_preferences(source))


def train_until_saved(recipe: Recipe, folder: Path) -> None:
    """Train, and stop as somebody does who is tired of waiting."""

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("saving"):
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        job.train(recipe, folder, stop)
        raise SystemExit("the training ended before it could be stopped, so there is nothing to go on with")


def costs(folder: Path, model: str, groups: int) -> dict[str, Cost]:
    source, store = folder / f"{groups}.jsonl", folder / f"store-{groups}"
    write_comparisons(source, groups)
    told = {
        "model.name": model,
        "model.precision": "float32",
        "preferences.source": str(source),
        "preferences.held_out": 10,
        "anchoring.anchored_store": str(store),
        "anchoring.base_max_new_tokens": 4,
        "training.max_steps": 1,
        "training.save_steps": 1,
    }
    recipe = read_recipe(None, told)
    few = folder / f"{groups}-few.jsonl"
    few.write_text("".join(source.read_text().splitlines(keepends=True)[:FEW]))
    of_few = read_recipe(None, {**told, "preferences.source": str(few)})
    return {
        "data": in_a_process(sum_up, str(source)),
        "first anchor": in_a_process(job.anchor, recipe),
        "the same again": in_a_process(job.anchor, recipe),
        "train, one step": in_a_process(train_until_saved, recipe, folder / f"run-{groups}"),
        "gone on with": in_a_process(job.train, recipe, folder / f"run-{groups}"),
        f"train, first {FEW}": in_a_process(job.train, of_few, folder / f"run-{groups}-few"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", type=int, nargs="*", default=[100, 10_000, 50_000])
    parser.add_argument("--model", help="a folder; a tiny random model by default")
    parser.add_argument("--keep", type=Path, help="a folder for all that is made, which stays")
    arguments = parser.parse_args()
    rows = []
    with nullcontext(arguments.keep) if arguments.keep else TemporaryDirectory() as place:
        folder = Path(place)
        folder.mkdir(exist_ok=True)
        if not arguments.model:
            in_a_process(write_model, folder / "model")
        for groups in arguments.groups:
            cells = costs(folder, arguments.model or str(folder / "model"), groups)
            rows.append((f"{groups:,}", *map(str, cells.values())))
            print(markdown_table(("groups", *cells), rows), flush=True)


if __name__ == "__main__":
    main()
