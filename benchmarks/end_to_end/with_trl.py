"""DPO and BAPO on two preferences with TRL's trainer, then lm-eval's `hf` model: what people write today."""

import gc
import json
import random
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PeftModel
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

MODEL = "model"
FILES = ["academy.jsonl", "literature.jsonl"]
BENCHMARKS = ["piqa", "arc_challenge", "scienceqa"]
HELD_OUT, QUESTIONS = 16, 100
STEPS, BATCH, EVAL_BATCH = 10, 8, 4
NEW_TOKENS, STRENGTH = 128, 5.0
PRECOMPUTE = True


def load():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto")


def preferences(path):
    """Rows to train on, and rows of held-out prompts."""
    rows = load_dataset("json", data_files=path, split="train")
    prompts = rows.unique("prompt")
    out = {prompts[at] for at in random.Random(0).sample(range(len(prompts)), HELD_OUT)}
    chats = rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
    )
    train = chats.filter(lambda row: row["prompt"][0]["content"] not in out)
    return train, chats.filter(lambda row: row["prompt"][0]["content"] in out)


def texts(rows):
    return [prompt[0]["content"] for prompt in rows["prompt"]]


def base_responses(prompts, tokenizer):
    """Token ids of what the model says before it is trained, by prompt."""
    model, found = load(), {}
    for start in range(0, len(prompts), 64):
        batch = prompts[start : start + 64]
        chats = [[{"role": "user", "content": prompt}] for prompt in batch]
        asked = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        said = model.generate(**asked.to(model.device), max_new_tokens=NEW_TOKENS, do_sample=False)
        for prompt, ids in zip(batch, said[:, asked["input_ids"].shape[1] :].tolist(), strict=True):
            end = tokenizer.eos_token_id
            found[prompt] = ids[: ids.index(end) + 1] if end in ids else ids
    return found


class BaseCollator(DataCollatorForPreference):
    """TRL's collator, with the base responses as one more padded batch."""

    def torch_call(self, examples):
        batch = super().torch_call(examples)
        if "base_ids" in examples[0]:
            rows = [{**row, "chosen_ids": row["base_ids"], "rejected_ids": []} for row in examples]
            both = super().torch_call(rows)
            names = ("input_ids", "attention_mask", "completion_mask")
            batch["bases"] = {name: both[name][: len(rows)] for name in names}
        if "ref_base_logps" in examples[0]:
            batch["ref_base_logps"] = torch.tensor([row["ref_base_logps"] for row in examples])
        return batch


class BAPOTrainer(DPOTrainer):
    """DPO with an anchor: base responses must not become less likely than they are under the reference."""

    def __init__(self, bases, **settings):
        super().__init__(**settings)
        self.data_collator = BaseCollator(self.data_collator.pad_token_id)
        prompts = texts(self.train_dataset)
        self.train_dataset = self.train_dataset.add_column("base_ids", [bases[prompt] for prompt in prompts])
        if self.precompute_ref_logps:
            one_each = dict(zip(prompts, self.train_dataset, strict=True))
            batches = DataLoader(list(one_each.values()), BATCH, collate_fn=self.data_collator)
            logps = torch.cat([self.reference_logps(batch["bases"]) for batch in batches]).tolist()
            known = dict(zip(one_each, logps, strict=True))
            column = [known[prompt] for prompt in prompts]
            self.train_dataset = self.train_dataset.add_column("ref_base_logps", column)

    def reference_logps(self, bases):
        return torch.cat(self.compute_ref_log_probs(self.model, bases))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        bases, reference = inputs.pop("bases", None), inputs.pop("ref_base_logps", None)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if bases is None:
            return loss
        if reference is None:
            reference = self.reference_logps(bases)
        labels = bases["input_ids"].masked_fill(bases.pop("completion_mask") == 0, -100)
        logps = model(**bases, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1)
        return loss + STRENGTH * F.relu(reference - logps).mean()


def trained(trainer_class, train, test, tokenizer, folder):
    model = load()
    settings = DPOConfig(
        output_dir=folder,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        precompute_ref_log_probs=PRECOMPUTE,
        max_length=None,
        activation_checkpointing=False,
        remove_unused_columns=False,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        save_strategy="no",
        report_to="none",
    )
    trainer = trainer_class(
        model=model,
        args=settings,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=32, lora_alpha=64, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_model(folder)
    return trainer


def reward_accuracy(trainer):
    return trainer.evaluate()["eval_rewards/accuracies"]


def merged(folder):
    return PeftModel.from_pretrained(load(), folder).merge_and_unload()


def benchmark_tasks():
    """The tasks of lm-eval, and in the folder `tasks` a file of our own for ScienceQA."""
    return TaskManager(include_path="tasks").load(BENCHMARKS)["tasks"]


def questions(tasks):
    """The same random questions for every model."""
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    return {name: sorted(random.Random(0).sample(range(size), min(QUESTIONS, size))) for name, size in sizes.items()}


def ask(model, tokenizer, tasks, asked):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=EVAL_BATCH)
    scores = evaluator.evaluate(lm, {"tasks": tasks}, samples=asked, bootstrap_iters=0)["results"]
    return {name: score.get("acc_norm,none", score["acc,none"]) for name, score in scores.items()}


def main():
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    data = {Path(path).stem: preferences(path) for path in FILES}
    bases = base_responses(sorted({text for train, _ in data.values() for text in texts(train)}), tokenizer)
    tasks = benchmark_tasks()
    asked = questions(tasks)
    found = {"base": ask(load(), tokenizer, tasks, asked)}
    for name, (train, test) in data.items():
        for method, trainer_class in {"dpo": DPOTrainer, "bapo": partial(BAPOTrainer, bases)}.items():
            trainer = trained(trainer_class, train, test, tokenizer, f"{name}-{method}")
            accuracy = reward_accuracy(trainer)
            del trainer
            gc.collect()
            scores = ask(merged(f"{name}-{method}"), tokenizer, tasks, asked)
            found[f"{name} {method}"] = {"reward accuracy": accuracy, **scores}
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
