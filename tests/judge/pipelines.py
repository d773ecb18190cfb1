"""Programs that call pipelines, of every task, with one input, lists, batches, and generators."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from judge.generation import ended_by_criteria
from judge.observe import Case, Seen, Truth, counted_flops
from judge.program import Choices, Family
from support import tasks

TASKS = {task.id: task for task in tasks.TASKS if tasks.available(task) and not tasks.missing(task)}

TEXT = {
    *(task.id for task in tasks.TEXT),
    *("text-to-audio", "text-to-audio[musicgen]", "table-question-answering", "document-question-answering"),
}
"""Tasks of which nothing but text is read: of the documents here, the words and their boxes."""

BEAMS = ("text2text-generation", "summarization", "translation")
"""Tasks that have four beams unless something else is said."""

AXES: dict[str, tuple[Any, ...]] = {
    "task": tuple(TASKS),
    "feed": ("one", "list", "generator", "dataset", "list of one", "broken off"),
    "batch": (1, 2, 3),
    "beams": (1, 3),
    "speech": ("plain", "chunks", "timestamps", "words"),
    "where": ("direct", "span", "block", "twice", "thread"),
}


def allows(c: Choices) -> bool:
    """Whether the pipeline takes it."""
    task = TASKS[c["task"]]
    return all(
        (
            c["batch"] == 1 or (task.batches and c["feed"] not in ("one", "list of one")),
            c["feed"] in ("one", "list", "list of one") or task.streams,
            c["speech"] == "plain" or c["task"].startswith("automatic-speech-recognition"),
            c["speech"] in ("plain", "chunks") or (task.variant == "whisper" and c["beams"] == 1),
            c["beams"] == 1 or c["task"] in ("text-generation", "automatic-speech-recognition[whisper]", *BEAMS),
        )
    )


def make(c: Choices) -> Case:
    """The program, ready to run."""
    task = TASKS[c["task"]]
    pipe = task.make()
    if hasattr(pipe.model, "set_attn_implementation"):
        try:
            pipe.model.set_attn_implementation("eager")
        except ValueError:
            pass
    notes: dict[str, Any] = {"calls": Counter(), "batches": [], "flops": 0}
    options = dict(task.call)
    if task.variant == "whisper":  # its pipeline has five beams otherwise
        options["generate_kwargs"] = {**options["generate_kwargs"], "num_beams": c["beams"]}
    elif c["beams"] > 1 or c["task"] in BEAMS:
        options["num_beams"] = c["beams"]
    if c["speech"] == "chunks":
        options.update(chunk_length_s=0.2, stride_length_s=0.05)
    elif c["speech"] != "plain":
        options["return_timestamps"] = "word" if c["speech"] == "words" else True
    if c["batch"] > 1:
        options["batch_size"] = c["batch"]

    def run() -> Any:
        inputs = task.inputs()  # some pipelines take them apart
        if c["feed"] == "one":
            return pipe(inputs[0], **options)
        if c["feed"] == "list of one":
            return pipe(inputs[:1], **options)
        if c["feed"] == "list":
            return pipe(inputs, **options)
        if c["feed"] == "dataset":
            return list(pipe(_Inputs(inputs), **options))
        results = pipe((each for each in inputs), **options)
        if c["feed"] == "generator":
            return list(results)
        steps = iter(results)
        return next(steps), next(steps)

    return Case(run, partial(_truth, c, notes), watch=partial(_watch, task, pipe, notes), same=lambda _: None)


class _Inputs(Dataset):  # type: ignore[type-arg]
    def __init__(self, inputs: list[Any]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index]


def _watch(task: Any, pipe: Any, notes: dict[str, Any]) -> None:
    """Count the calls of the pipeline's parts, and look at what its model gets."""
    forward = pipe.forward

    def counting(
        *args: Any, **kwargs: Any
    ) -> Any:  # of the model alone: a feature extractor may compute with torch too
        with counted_flops() as flops:
            result = forward(*args, **kwargs)
        notes["flops"] += flops[0] or 0
        return result

    pipe.forward = counting
    for name in ("preprocess", "forward", "postprocess"):
        setattr(pipe, name, _counted(notes["calls"], name, getattr(pipe, name)))
    if task.generates:
        generate = pipe.model.generate

        def generating(*args: Any, **kwargs: Any) -> Any:
            notes["batches"].append(_looked_at({"input_ids": args[0], **kwargs} if args else kwargs))
            return generate(*args, **kwargs)

        pipe.model.generate = generating
    else:

        def called(_: Any, args: Any, kwargs: Any) -> None:
            notes["batches"].append(_looked_at(kwargs if kwargs or not args else {"first": args[0]}))

        pipe.model.register_forward_pre_hook(called, with_kwargs=True)


def _counted(calls: Counter[str], name: str, method: Any) -> Any:
    if inspect.isgeneratorfunction(method):

        def chunks(*args: Any, **kwargs: Any) -> Any:
            for chunk in method(*args, **kwargs):
                calls[name] += 1
                yield chunk

        return chunks

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return method(*args, **kwargs)

    return counted


def _looked_at(given: Mapping[str, Any]) -> tuple[int, int | None, int | None, int | None]:
    """Rows, length, positions and tokens of what a model was given, by plain counting."""
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if ids is None:
        tensor = next(value for name, value in given.items() if hasattr(value, "shape") and name != "attention_mask")
        return tensor.shape[0], None, None, None
    listed = ids.tolist()
    positions = sum(len(row) for row in listed)
    tokens = positions if mask is None else sum(flag == 1 for row in mask.tolist() for flag in row)
    return len(listed), max(len(row) for row in listed), positions, tokens


def _truth(c: Choices, notes: dict[str, Any], result: Any, seen: Seen) -> Truth:
    task, batches = TASKS[c["task"]], notes["batches"]
    before, after = ("tokenize", "detokenize") if c["task"] in TEXT else ("preprocess", "postprocess")
    names = {"preprocess": before, "forward": "forward", "postprocess": after}
    read = [batch for batch in batches if batch[1] is not None]
    tokens, finish = None, None
    if seen.loops:
        tokens, finish = 0, []
        for loop in seen.loops:
            of_loop, reasons = ended_by_criteria(loop)
            tokens, finish = tokens + of_loop, finish + reasons
    unknown: set[str] = {"musicgen": {"output_tokens", "finish", "input_tokens", "length"}}.get(task.variant, set())
    if c["beams"] > 1:
        unknown = {"output_tokens", "finish"}
    if c["task"] == "visual-question-answering":
        unknown = {"finish"}
    if task.name in ("zero-shot-image-classification", "zero-shot-object-detection", "zero-shot-audio-classification"):
        unknown = {"rows"}  # of texts and images, one of each kind
    return Truth(
        calls={names[name]: number for name, number in notes["calls"].items()},
        rows=max(batch[0] for batch in batches),
        length=max(batch[1] for batch in read) if read else None,
        input_tokens=sum(batch[3] for batch in read) if read else None,
        positions=sum(batch[2] for batch in read) if read else None,
        output_tokens=tokens,
        finish=finish,
        items={"one": None, "list of one": 1, "broken off": 2}.get(c["feed"], 3),
        flops=notes["flops"],
        unknown=frozenset({*unknown, "cache_bytes"}),
    )


FAMILY = Family("pipeline", AXES, allows, make, share=3)
