"""The words for what is asked and who is asked."""

from __future__ import annotations

BASE, EXPERTS, AVERAGE, MIXTURE = KINDS = ("base", "experts", "average", "mixture")  # of models, as tables have them
SUITES = {  # names for several tasks, each with its number of examples in the prompt if that isn't the task's own
    "quick": ("arc_easy", "hellaswag", "piqa", "winogrande"),
    "open-llm-leaderboard": (  # as it was from May 2023 to June 2024
        "arc_challenge:25", "hellaswag:10", "mmlu:5", "truthfulqa_mc2", "winogrande:5", "gsm8k:5",
    ),
    "nous": (
        "agieval_nous", "arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande",
        "truthfulqa_mc2",
    ),
}  # fmt: skip
