"""Every pipeline task, with every kind of input: one trace each, and results that are what they are without us."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.recorder import Recorder
from support.tasks import TASKS, Task, available, missing

TEXT = ("tokenize", "forward", "detokenize")
OTHER = ("preprocess", "forward", "postprocess")
GENERATED = ("forward", "prefill", "decode")
TEXT_GENERATED = ("tokenize", GENERATED, "detokenize")
OTHER_GENERATED = ("preprocess", GENERATED, "postprocess")

EXPECTED = {
    "text-classification": ("text-classification BertForSequenceClassification", TEXT),
    "token-classification": ("token-classification BertForTokenClassification", TEXT),
    "fill-mask": ("fill-mask BertForMaskedLM", TEXT),
    "feature-extraction": ("embeddings BertModel", TEXT),
    "zero-shot-classification": ("zero-shot-classification BertForSequenceClassification", TEXT),
    "text-generation": ("text_completion LlamaForCausalLM", TEXT_GENERATED),
    "text-generation[chat]": ("chat LlamaForCausalLM", TEXT_GENERATED),
    "decision": ("decision LlamaForCausalLM", TEXT),
    "text2text-generation": ("text_completion T5ForConditionalGeneration", TEXT_GENERATED),
    "summarization": ("text_completion T5ForConditionalGeneration", TEXT_GENERATED),
    "translation": ("text_completion T5ForConditionalGeneration", TEXT_GENERATED),
    "question-answering": ("question-answering BertForQuestionAnswering", TEXT),
    "image-classification": ("image-classification ViTForImageClassification", OTHER),
    "image-feature-extraction": ("embeddings ViTModel", OTHER),
    "image-segmentation": ("image-segmentation SegformerForSemanticSegmentation", OTHER),
    "object-detection": ("object-detection YolosForObjectDetection", OTHER),
    "depth-estimation": ("depth-estimation GLPNForDepthEstimation", OTHER),
    "mask-generation": ("mask-generation SamModel", OTHER),
    "keypoint-matching": ("keypoint-matching SuperGlueForKeypointMatching", OTHER),
    "image-to-image": ("image-to-image Swin2SRForImageSuperResolution", OTHER),
    "video-classification": ("video-classification VideoMAEForVideoClassification", OTHER),
    "audio-classification": ("audio-classification Wav2Vec2ForSequenceClassification", OTHER),
    "automatic-speech-recognition[ctc]": ("automatic-speech-recognition Wav2Vec2ForCTC", OTHER),
    "automatic-speech-recognition[whisper]": (
        "automatic-speech-recognition WhisperForConditionalGeneration",
        OTHER_GENERATED,
    ),
    "zero-shot-audio-classification": ("zero-shot-audio-classification ClapModel", OTHER),
    "text-to-audio": ("text-to-audio VitsModel", TEXT),
    "text-to-audio[musicgen]": ("text-to-audio MusicgenForConditionalGeneration", TEXT_GENERATED),
    "zero-shot-image-classification": ("zero-shot-image-classification CLIPModel", OTHER),
    "zero-shot-object-detection": ("zero-shot-object-detection OwlViTForObjectDetection", OTHER),
    "image-text-to-text": ("chat LlavaForConditionalGeneration", OTHER_GENERATED),
    "any-to-any": ("generate_content Qwen2AudioForConditionalGeneration", OTHER_GENERATED),
    "document-question-answering": ("document-question-answering LayoutLMForQuestionAnswering", TEXT),
    "document-question-answering[donut]": (
        "document-question-answering VisionEncoderDecoderModel",
        OTHER_GENERATED,
    ),
    "table-question-answering": ("table-question-answering TapasForQuestionAnswering", TEXT),
    "visual-question-answering": ("visual-question-answering BlipForQuestionAnswering", OTHER_GENERATED),
    "image-to-text": ("image-to-text VisionEncoderDecoderModel", OTHER_GENERATED),
}
"""Name of the root and the three phases, by the row's id."""

CHUNKS = {"zero-shot-classification": 3, "mask-generation": 2, "zero-shot-object-detection": 2}
"""Chunks of one input, where there are several."""

UNSEEN = {
    "text-generation[chat]": "text_completion LlamaForCausalLM",
    "image-text-to-text": "generate_content LlavaForConditionalGeneration",
}
"""Roots of a generator: whether it gives chats is not known before it is consumed, and it is not consumed for us."""

NO_DATASET = {"text-generation[chat]", "image-text-to-text"}
"""transformers itself does not take these inputs from a Dataset."""


class Items(torch.utils.data.Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def generator_of(items: list[Any]) -> Iterator[Any]:
    yield from items


MODES: dict[str, Callable[[Any, Task], Any]] = {
    "single": lambda pipe, task: pipe(task.inputs()[0], **task.call),
    "list": lambda pipe, task: pipe(task.inputs(), **task.call),
    "batch": lambda pipe, task: pipe(task.inputs(), batch_size=2, **task.call),
    "generator": lambda pipe, task: pipe(generator_of(task.inputs()), **task.call),
    "dataset": lambda pipe, task: pipe(Items(task.inputs()), **task.call),
}


def takes(task: Task, mode: str) -> bool:
    if mode == "batch":
        return task.batches
    if mode == "dataset":
        return task.streams and task.id not in NO_DATASET
    return mode != "generator" or task.streams


def cases() -> list[Any]:
    found = []
    for task in TASKS:
        for mode in MODES:
            if not available(task) or not takes(task, mode):
                continue
            reason = f"{task.id} needs {missing(task)}, which is not installed"
            marks = pytest.mark.skip(reason=reason) if missing(task) else ()
            found.append(pytest.param(task, mode, id=f"{task.id}-{mode}", marks=marks))
    return found


def expected_tree(task: Task, mode: str) -> Any:
    """What the library does, in order: one forward for each batch of chunks, then the items that it completed."""
    root, (before, forward, after) = EXPECTED[task.id]
    if mode == "generator":
        root = UNSEEN.get(task.id, root)
    chunks = CHUNKS.get(task.id, 1)
    items = 1 if mode == "single" else 3
    ends = [(index + 1) % chunks == 0 for index in range(items * chunks)]
    size = 2 if mode == "batch" else 1
    phases: list[Any] = []
    for start in range(0, len(ends), size):
        phases += [before, forward]
        if any(ends[start : start + size]):
            phases.append(after)
    return (root, *phases)


def frozen(value: Any) -> Any:
    """The value as nested tuples that compare byte for byte, types included."""
    kind = type(value).__qualname__
    if value is None or isinstance(value, (str, bytes, bool, int)):
        return kind, value
    if isinstance(value, (float, np.generic)):
        return kind, repr(value)
    if isinstance(value, torch.Tensor):
        return kind, value.dtype, tuple(value.shape), value.requires_grad, value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return kind, value.dtype, value.shape, value.tobytes()
    if isinstance(value, Image.Image):
        return kind, value.mode, value.size, value.tobytes()
    if isinstance(value, Mapping):
        return kind, tuple((key, frozen(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return kind, tuple(frozen(item) for item in value)
    raise TypeError(f"no rule to compare a {kind}")


def random_states() -> Any:
    name, keys, *position = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (name, keys.tobytes(), *position)


def outcome(task: Task, mode: str) -> Any:
    """Type of the result, each item of it, and how far the random generators have moved."""
    pipe = task.make()
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    result = MODES[mode](pipe, task)
    if mode in ("generator", "dataset"):
        return type(result), [(frozen(item), random_states()) for item in result]
    return type(result), frozen(result), random_states()


@pytest.mark.parametrize(("task", "mode"), cases())
def test_task_called_gives_one_trace(task: Task, mode: str, recorder: Recorder) -> None:
    pipe = task.make()
    recorder.clear()
    result = MODES[mode](pipe, task)
    if mode in ("generator", "dataset"):
        assert recorder.trees() == []
        assert sum(1 for _ in result) == 3
    assert recorder.trees() == [expected_tree(task, mode)]
    assert recorder.span(expected_tree(task, mode)[0]).attributes["inferspan.task"] == pipe.task


@pytest.mark.parametrize(("task", "mode"), cases())
def test_task_instrumented_gives_the_same_result(task: Task, mode: str, bare_recorder: Recorder) -> None:
    plain = outcome(task, mode)
    bare_recorder.instrument()
    assert outcome(task, mode) == plain
