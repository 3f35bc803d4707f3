"""What people write today: two methods on several preferences with TRL's trainer, then lm-eval's `hf` model."""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("settings", type=json.loads)
parser.add_argument("--precompute", action="store_true")
arguments = parser.parse_args()
told = arguments.settings
dtype = getattr(torch, told["dtype"])
tokenizer = AutoTokenizer.from_pretrained(told["model"])
seconds = {"training": 0.0, "reward accuracy": 0.0, "benchmarks": 0.0}
found = {}


def load():
    return AutoModelForCausalLM.from_pretrained(told["model"], dtype=dtype)


def timed(stage, work):
    start = time.perf_counter()
    result = work()
    seconds[stage] += time.perf_counter() - start
    return result


def ask(model):
    from bapo.evaluation import benchmark_names, local_folder  # a task of lm-eval by its name needs a connection
    from bapo.evaluation.benchmarks import load_tasks

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=told["eval_batch"])
    names = benchmark_names(",".join(told["benchmarks"]))
    tasks = {task.name: task.task for name in names for task in load_tasks(name, data_folder=local_folder(None))}
    scores = evaluator.evaluate(lm, tasks, limit=told["limit"], bootstrap_iters=0)["results"]
    return {name: score.get("acc_norm,none", score["acc,none"]) for name, score in scores.items()}


found["base"] = timed("benchmarks", lambda: ask(load()))
for preference, files in told["files"].items():
    data = load_dataset("json", data_files=files)
    for method, loss in told["methods"].items():
        folder = f"trl/{preference}-{method}"
        settings = DPOConfig(
            output_dir=folder,
            loss_type=[loss],
            beta=0.1,
            learning_rate=2e-4,
            max_steps=told["steps"],
            per_device_train_batch_size=told["batch"],
            per_device_eval_batch_size=told["batch"],
            precompute_ref_log_probs=arguments.precompute,
            bf16=dtype == torch.bfloat16,
            max_length=None,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        lora = LoraConfig(r=32, lora_alpha=64, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = DPOTrainer(
            load(),
            args=settings,
            train_dataset=data["train"],
            eval_dataset=data["test"],
            processing_class=tokenizer,
            peft_config=lora,
        )
        timed("training", trainer.train)
        accuracy = timed("reward accuracy", trainer.evaluate)["eval_rewards/accuracies"]
        trainer.save_model(folder)
        del trainer
        model = PeftModel.from_pretrained(load(), folder)
        scores = timed("benchmarks", partial(ask, model))
        found[f"{preference} {method}"] = {"reward accuracy": accuracy, **scores}
Path("trl.json").write_text(json.dumps({"seconds": seconds, "found": found}))
