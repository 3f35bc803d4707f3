"""Asking a model the questions of a benchmark, in pieces that are kept as soon as they are answered."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

from bapo.errors import BapoError
from bapo.evaluation.benchmarks import Asked, LoadedTask, load_tasks, sample_documents
from bapo.evaluation.harness import BapoLM
from bapo.evaluation.registry import BENCHMARKS
from bapo.models import LoadedModel, cache_folder, model_fingerprint, tokenizer_fingerprint
from bapo.progress import OnProgress, silent
from bapo.results import Answer, AnswerStore, AskedBenchmark, rounding_between
from bapo.settings import SCORING_VERSION

KEPT_TOGETHER = 256
"""Questions of one task that are asked, and kept, at once."""

ROUNDING_QUESTIONS = 8
"""Of a benchmark, that are asked again to find out what rounding makes of a right choice's log-probability."""

BEHIND_SYSTEM = "\n\n"
"""What stands between a system prompt and a question that is not asked as a chat; `lm-eval` puts nothing there."""


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """Which questions are asked, the same for every model.

    Attributes:
        names: of the benchmarks.
        limit: questions of each benchmark; None asks all.
        seed: seed of the sample.
        asked: how questions are asked.
        data_folder: local questions; None reads the hub.
        answers_folder: where answers are kept; None takes the user's cache folder.
    """

    names: tuple[str, ...] = tuple(BENCHMARKS)
    limit: int | None = None
    seed: int = 0
    asked: Asked = "harness"
    data_folder: Path | None = None
    answers_folder: Path | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise BapoError(f"--limit is {self.limit}: ask at least one question, or leave it out for all.")


class EvaluatedModel:
    """A model, how it is spoken to, and where its answers are kept.

    Args:
        model: the model.
        system: a system prompt before every question (with the prompt-only rival, the preference in words).
        folder: where answers are kept; the user's cache folder by default.
    """

    def __init__(self, model: LoadedModel, *, system: str | None = None, folder: Path | None = None) -> None:
        self.model = model
        self.system = system
        self.folder = folder or cache_folder() / "answers"
        self.lm = BapoLM(model)
        asked_of = (
            model_fingerprint(model.model),
            tokenizer_fingerprint(model.tokenizer),
            None if system is None else (system, BEHIND_SYSTEM),
            SCORING_VERSION,
        )
        self.fingerprint = hashlib.sha256(repr(asked_of).encode()).hexdigest()

    def check(self, plan: BenchmarkPlan) -> None:
        """Find out what cannot be asked before anything is.

        Raises:
            BapoError: a benchmark is asked in a chat format that the model does not have, or data cannot be read.
        """
        for benchmark in plan.names:
            tasks = load_tasks(benchmark, asked=plan.asked, data_folder=plan.data_folder)
            if any(task.chat for task in tasks) and not self.model.chat.has_template:
                raise BapoError(
                    f"{benchmark} is asked in a chat format, and the model's tokenizer has no chat template: "
                    "use an instruction-tuned model, or --ask harness without hhh."
                )

    def ask(
        self,
        benchmark: str,
        plan: BenchmarkPlan,
        *,
        name: str = "the model",
        rounding: bool = False,
        on_progress: OnProgress = silent,
    ) -> AskedBenchmark:
        """Ask a benchmark; what was asked before is in the store and is not asked again.

        Args:
            benchmark: its name.
            plan: which of its questions, and how.
            name: what the model is called.
            rounding: whether it is measured what rounding makes of the right choice's log-probability.
            on_progress: told how many questions are answered, and of how many.

        Raises:
            BapoError: the benchmark or its data are not there.
        """
        start = time.perf_counter()
        self.check(replace(plan, names=(benchmark,)))
        tasks = load_tasks(benchmark, asked=plan.asked, data_folder=plan.data_folder)
        drawn = sample_documents(tasks, plan.limit, plan.seed)
        total, before = sum(map(len, drawn.values())), 0
        stores: dict[str, AnswerStore] = {}
        for task in tasks:
            tell = partial(_after, before, total, f"{name}: {benchmark}", on_progress)
            stores[task.name] = self._ask_task(task, drawn[task.name], tell)
            before += len(drawn[task.name])
        return AskedBenchmark(
            model=name,
            benchmark=benchmark,
            title=BENCHMARKS[benchmark].title,
            kind=BENCHMARKS[benchmark].kind,
            questions=sum(len(task.task.eval_docs) for task in tasks),
            seconds=time.perf_counter() - start,
            stores={task: str(store.folder.resolve()) for task, store in stores.items()},
            documents={task: tuple(numbers) for task, numbers in drawn.items()},
            rounding=self._rounding(tasks, drawn, stores) if rounding else None,
        )

    def _rounding(
        self, tasks: Sequence[LoadedTask], drawn: Mapping[str, Sequence[int]], stores: Mapping[str, AnswerStore]
    ) -> float:
        """What rounding alone moves the right choice's log-probability by, nats a question, root mean square.

        A few questions are asked twice more: in other company, and so with embeddings that are moved by a rounding here
        and there, because a machine may compute all companies alike (`ResponseScorer.layouts`). Of the two passes that
        differ most.
        """
        asked = [(task.name, number) for task in tasks for number in drawn[task.name]]
        count = min(ROUNDING_QUESTIONS, len(asked))
        some = [asked[at * len(asked) // count] for at in range(count)]
        passes: tuple[list[Answer], ...] = ([], [], [])
        for task in tasks:
            numbers = [number for name, number in some if name == task.name]
            if numbers:
                kept = stores[task.name].read()
                passes[0].extend(kept[number] for number in numbers)
                passes[1].extend(self._answers(task, numbers))
                with self.lm.scorer.passes.nudging():
                    passes[2].extend(self._answers(task, numbers))
        return max(rounding_between(*pair) for pair in combinations(passes, 2))

    def _ask_task(self, task: LoadedTask, documents: Sequence[int], tell: Callable[[int], None]) -> AnswerStore:
        """The store in which the answers are, all of them."""
        store = AnswerStore.of(self.folder, self.fingerprint, _with_data(task, self._date(task)), task.name)
        known = set(store.read())
        missing = [number for number in documents if number not in known]
        tell(len(documents) - len(missing))
        for start in range(0, len(missing), KEPT_TOGETHER):
            piece = list(self._answers(task, missing[start : start + KEPT_TOGETHER]))
            store.add(piece, self._made_on)
            known |= {answer.document for answer in piece}
            tell(sum(number in known for number in documents))
        return store

    def _date(self, task: LoadedTask) -> str:
        """What the date does to a question, where a chat template writes it; nothing elsewhere."""
        chat = self.model.chat
        return chat.render([{"role": "user", "content": "x"}]) if task.chat and chat.today else ""

    @cached_property
    def _made_on(self) -> dict[str, Any]:
        return self.lm.scorer.made_on()

    def _answers(self, task: LoadedTask, documents: Sequence[int]) -> Iterator[Answer]:
        lm_task = task.task
        lm_task.build_all_requests(
            samples=list(documents),
            system_instruction=self.system if self.system is None or task.chat else self.system + BEHIND_SYSTEM,
            apply_chat_template=task.chat,
            fewshot_as_multiturn=True,
            chat_template=self.lm.apply_chat_template if task.chat else None,
        )
        requests: dict[int, list[Any]] = {}
        for instance in lm_task.instances:
            requests.setdefault(instance.doc_id, []).append(instance)
        scored = iter(self.lm.loglikelihood(lm_task.instances, disable_tqdm=True))
        for at, instances in requests.items():  # they are numbered within the sample, which is in ascending order
            document = instances[0].doc
            scores = [next(scored) for _ in instances]
            metrics: Mapping[str, Any] = lm_task.process_results(document, scores)
            choices = tuple(str(choice) for choice in lm_task.doc_to_choice(document))
            right = lm_task.doc_to_target(document)
            yield Answer(
                task=task.name,
                document=documents[at],
                category=task.category_of(document),
                question=str(lm_task.doc_to_text(document)),
                choices=choices,
                logps=tuple(logp for logp, _ in scores),
                right=choices.index(right) if isinstance(right, str) else int(right),
                acc=float(metrics["acc"]),
                acc_norm=float(metrics["acc_norm"]) if "acc_norm" in metrics else None,
            )


def _after(before: int, total: int, stage: str, on_progress: OnProgress, done: int) -> None:
    on_progress(stage, before + done, total)


def _with_data(task: LoadedTask, date: str) -> str:
    """The task's fingerprint with that of its questions and examples, and the date that they are asked on."""
    digest = hashlib.sha256(f"{task.fingerprint}{date}".encode())
    examples = task.task.fewshot_docs() if task.task.config.num_fewshot else ()
    for documents in (task.task.eval_docs, examples):
        for row in documents:
            digest.update(json.dumps({k: v for k, v in row.items() if k != "image"}, default=str).encode())
    return digest.hexdigest()
