"""CommonsenseQA: five choices."""

from __future__ import annotations

from bapo.evaluation.registry import RIGHT_LABEL, TEXT_METRICS, benchmark
from bapo.evaluation.tasks.arc_challenge import ArcChallenge


@benchmark("commonsense_qa")
class CommonsenseQa(ArcChallenge):
    """Talmor et al. 2019; its rows are those of ARC."""

    title, task, native = "CommonsenseQA", "commonsense_qa", "letter"
    variants = {
        "text": {
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "{{choices.text}}",
            "doc_to_target": RIGHT_LABEL,
            "metric_list": TEXT_METRICS,
        }
    }
    files, choices = {"validation": "knowledge/commonsense_qa.jsonl"}, 5
    size = 1221, 32
