"""What `test_instruction_sets.py` runs where the processor is limited: anchoring and three steps, embedded model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bapo import BAPOConfig, BAPOTrainer
from bapo.models import load_model, lora_config, machine

ROWS = [
    {"prompt": f"What is {i} plus {i}?", "chosen": f" {2 * i}, captain!", "rejected": f" The sum is {2 * i}."}
    for i in (3, 4)
]

if __name__ == "__main__":
    precision, store, out = sys.argv[1:]
    loaded = load_model("smollm2", precision=precision, device="cpu")
    told = BAPOConfig(
        output_dir=out,
        anchored_store=store,
        max_steps=3,
        per_device_train_batch_size=2,
        base_max_new_tokens=4,
        learning_rate=1e-3,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = BAPOTrainer(
        loaded.model,
        args=told,
        train_dataset=ROWS,
        processing_class=loaded.tokenizer,
        peft_config=lora_config(rank=4, dropout=0.0),
    )
    trainer.train()
    found = {"machine": machine(), "log": [entry for entry in trainer.state.log_history if "loss" in entry]}
    Path(out).mkdir(exist_ok=True)
    Path(out, "found.json").write_text(json.dumps(found))
