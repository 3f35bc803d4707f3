"""What the task files of this folder call; `lm-eval` loads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

HHH_CATEGORIES = ("helpful", "harmless", "honest", "other")


def without_picture(documents: Any) -> Any:
    """ScienceQA's questions that have no image."""
    if "image" not in documents.column_names:
        return documents
    return documents.cast_column("image", datasets.Image(decode=False)).filter(lambda row: row["image"] is None)


def hhh_from_hub(**_: Any) -> dict[str, Any]:
    """The four parts of HuggingFaceH4/hhh_alignment as one, the better response first."""
    rows = []
    for category in HHH_CATEGORIES:
        for row in datasets.load_dataset("HuggingFaceH4/hhh_alignment", category)["test"]:
            choices, labels = row["targets"]["choices"], row["targets"]["labels"]
            good = labels.index(1)
            rows.append(
                {
                    "prompt": row["input"],
                    "chosen": choices[good],
                    "rejected": choices[1 - good],
                    "category": category,
                }
            )
    return {"test": datasets.Dataset.from_list(rows)}


def turns(dialogue: str) -> list[dict[str, str]]:
    r"""The turns of a dialogue whose later turns are marked by "Human:" and "Assistant:"; a person speaks first.

    >>> [turn["role"] for turn in turns("Hi\n\nAssistant: Hello!\n\nHuman: How are you?")]
    ['user', 'assistant', 'user']
    """
    marks = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
    text = "\n\n" + dialogue.strip() if dialogue.lstrip().startswith("Human:") else "\n\nHuman: " + dialogue.strip()
    _, *parts = re.split(f"({'|'.join(marks)})", text)
    said = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": marks[mark], "content": content.strip()} for mark, content in said if content.strip()]


class HHHTask(ConfigurableTask):
    """A dialogue and two responses to its last turn."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(
        self,
        doc: dict[str, Any],
        num_fewshot: int = 0,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str:
        """The dialogue in the model's chat format, or in plain text where there is none."""
        dialogue = turns(doc["prompt"])
        if apply_chat_template and chat_template is not None:
            system = [{"role": "system", "content": system_instruction}] if system_instruction else []
            return chat_template([*system, *dialogue], add_generation_prompt=True)
        names = {"user": "Human", "assistant": "Assistant"}
        plain = "\n\n".join(f"{names[turn['role']]}: {turn['content']}" for turn in dialogue)
        return (f"{system_instruction}\n\n" if system_instruction else "") + plain + "\n\nAssistant:"
