"""How fast a machine computes: measured here in half a minute, or of a named GPU by its datasheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from bapo import __version__
from bapo.errors import BapoError
from bapo.progress import OnProgress, silent
from bapo.registry import nearest
from bapo.results import identity_of
from bapo.study.sizes import ModelSize

DATASHEETS = {
    "h100": (989e12, 3.35e12, "NVIDIA H100 SXM datasheet: 989 TFLOPS bf16 dense, 3.35 TB/s"),
    "h200": (989e12, 4.8e12, "NVIDIA H200 SXM datasheet: 989 TFLOPS bf16 dense, 4.8 TB/s"),
    "a100": (312e12, 2.039e12, "NVIDIA A100 SXM 80GB datasheet: 312 TFLOPS bf16 dense, 2.039 TB/s"),
    "l4": (121e12, 0.3e12, "NVIDIA L4 datasheet: 121 TFLOPS bf16 dense, 300 GB/s"),
    "l40s": (362e12, 0.864e12, "NVIDIA L40S datasheet: 362 TFLOPS bf16 dense, 864 GB/s"),
    "a6000": (154.8e12, 0.768e12, "NVIDIA RTX A6000 datasheet: 154.8 TFLOPS bf16 dense, 768 GB/s"),
    "rtx4090": (165.2e12, 1.008e12, "NVIDIA Ada whitepaper, RTX 4090: 165.2 TFLOPS bf16 dense, 1.008 TB/s"),
}
"""By name: operations a second in bf16 without sparsity, bytes a second, and where that stands."""

_TOGETHER = 32
"""Prompts that are answered together."""

_PROCESS_S = 5.0
"""Seconds until a process of Python has imported what it needs."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a machine.

    Attributes:
        forward, trained: operations a second without and with a backward pass.
        generated: operations a second while tokens are generated, each of which reads all weights.
        start: seconds before a process does anything: its imports, and a model's loading and probing.
        called: what the machine is called.
    """

    forward: float
    trained: float
    generated: float
    start: float
    called: str

    def seconds(self, model: ModelSize, forward: float, trained: float, generated: float, context: float) -> float:
        """Seconds for so many tokens of a model that is loaded."""
        per_token = 2 * model.parameters + 4 * model.layers * model.hidden * context
        times = forward / self.forward + 2 * trained / self.trained + generated / self.generated
        return per_token * times


def datasheet_rates(gpu: str, share: float) -> Rates:
    """Of a GPU at a share of its peak.

    Args:
        gpu: a key of `DATASHEETS`.
        share: of the peak that is reached, of operations and of bandwidth.

    Raises:
        BapoError: there is no such GPU, or no such share.
    """
    if gpu not in DATASHEETS:
        raise BapoError(f"No datasheet of {gpu!r}{nearest(gpu, DATASHEETS)}: use one of {', '.join(DATASHEETS)}.")
    if not 0 < share <= 1:
        raise BapoError(f"--share is {share:g}: it is a share of the peak, more than 0 and at most 1.")
    flops, bandwidth, source = DATASHEETS[gpu]
    generated = share * min(
        flops, bandwidth * _TOGETHER
    )  # two operations for each weight of two bytes, for each prompt
    return Rates(share * flops, share * flops, generated, 60.0, f"{gpu} at {share:.0%} of its peak ({source})")


def measured_rates(on_progress: OnProgress = silent) -> Rates:
    """Of this machine; measured once and kept, in the user's cache folder, for this processor and these versions.

    Raises:
        BapoError: the embedded model is not installed.
    """
    from bapo.files import make_folder, read_record, write_record
    from bapo.models import cache_folder, machine

    path = make_folder(cache_folder() / "rates") / f"{identity_of(machine=machine(), version=__version__)}.json"
    if not path.is_file():
        write_record(path, asdict(_calibrate(on_progress)))
    kept = read_record(path, "delete it, and it is measured again")
    return Rates(**{field.name: kept[field.name] for field in fields(Rates)})


def _calibrate(on_progress: OnProgress) -> Rates:
    """The embedded model scores, answers and trains for a few seconds each."""
    from bapo.anchoring import GenerationSettings, LengthPolicy, Response, generate_batch
    from bapo.anchoring.tokens import tokenize
    from bapo.likelihood import ResponseScorer
    from bapo.models import add_lora, load_model, machine
    from bapo.preferences import read_preferences

    on_progress("calibrating", 0, 4, "loading the model")
    start = time.perf_counter()
    loaded = load_model("smollm2")
    read = tokenize(read_preferences("starter:concise"), loaded.chat, LengthPolicy())
    groups = [group.tokens for group in read.groups[:4]]
    ResponseScorer(loaded.model).score(groups[:2])  # its probe is part of starting
    load = time.perf_counter() - start
    on_progress("calibrating", 1, 4, "scoring")
    forward = _seconds(lambda: ResponseScorer(loaded.model).score(groups))
    on_progress("calibrating", 2, 4, "generating")
    settings, asked = GenerationSettings(max_new_tokens=32), [group.prompt for group in groups] * 4
    answered: list[list[tuple[Response, ...]]] = []

    def answer() -> None:
        answered.append(generate_batch(loaded.model, asked, settings, loaded.chat.end_ids, loaded.kernels))

    generated = _seconds(answer)
    said = sum(len(response.ids) for responses in answered[-1] for response in responses)
    on_progress("calibrating", 3, 4, "training")
    per_token = 2.0 * sum(parameter.numel() for parameter in loaded.model.parameters())
    policy = add_lora(loaded.model).train()
    scorer = ResponseScorer(policy)

    def step() -> None:
        with scorer:
            scorer(groups).summed().sum().backward()
        policy.zero_grad()

    trained = _seconds(step)
    on_progress("calibrating", 4, 4)
    about, tokens = machine(loaded.model.device), sum(group.cost for group in groups)
    return Rates(
        forward=tokens * per_token / forward,
        trained=2 * tokens * per_token / trained,
        generated=said * per_token / generated,
        start=load + _PROCESS_S,
        called=f"this machine ({about['processor']}, {about['instruction_set']}, {about['threads']} threads)",
    )


def _seconds(work: Callable[[], object]) -> float:
    """Of the second time, when all that is prepared once is there."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
