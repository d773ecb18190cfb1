"""Tasks of pipelines that sentences alone will do for, and which of them a model is for."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TASKS", "task_of"]

TASKS = ("text-generation", "text-classification", "feature-extraction", "token-classification", "fill-mask")

_TASK_OF_ENDING = {
    "CausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "MaskedLM": "fill-mask",
    "Model": "feature-extraction",
}


def task_of(architectures: Sequence[str]) -> str | None:
    """The task by the architectures that a model's configuration names; ``None`` where it is none of these."""
    for architecture in architectures:
        for ending, task in _TASK_OF_ENDING.items():
            if architecture.endswith(ending):
                return task
    return None
