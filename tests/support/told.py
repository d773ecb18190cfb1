"""What the application of the end-to-end tests was told to do, and how to read that off Jaeger's answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from support.backends import Jaeger

CLASSIFICATIONS, GENERATIONS = 3, 5
CLASSIFICATION = ("text-classification tiny-bert", "tokenize", "forward", "detokenize")
FAILURE = ("text-classification tiny-bert", "tokenize")
GENERATION = ("text_completion tiny-llama", "tokenize", ("forward", "prefill", "decode"), "detokenize")
TOLD = Counter(
    {
        "load tiny-bert": 1,
        "load tiny-llama": 1,
        CLASSIFICATION: CLASSIFICATIONS,
        FAILURE: 1,
        GENERATION: GENERATIONS,
    }
)
"""All that the application did, as trees of names."""


def tree(trace: Any) -> Any:
    """A trace as Jaeger's API has it: a name, or a name and its children, in the order of their start."""
    spans = sorted(trace["spans"], key=lambda span: (span["startTime"], -span["duration"]))

    def below(span: Any) -> Any:
        children = [below(other) for other in spans if parent(other) == span["spanID"]]
        return (span["operationName"], *children) if children else span["operationName"]

    def parent(span: Any) -> str | None:
        return next((each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF"), None)

    (root,) = (span for span in spans if parent(span) is None)
    return below(root)


def tags(span: Any) -> dict[str, Any]:
    """What Jaeger shows of a span."""
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def span(trace: Any, name: str) -> Any:
    """The one span of that name."""
    (found,) = (each for each in trace["spans"] if each["operationName"] == name)
    return found


def all_traces(jaeger: Jaeger, service: str, number: int = sum(TOLD.values())) -> list[Any]:
    """Every trace of the service, once there are as many."""
    return jaeger.until(
        lambda: len(found := jaeger.traces(service)) >= number and found, f"{number} traces of {service} in Jaeger"
    )
