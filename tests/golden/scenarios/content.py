"""Prompts and completions: in each mode, with the released and the latest conventions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from golden.scenarios.parts import CHAT, GREEDY, IDS, THREE, Items, called, classifier, each, generator, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("content")

MODES = ("NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT")
_IMAGE = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]


def _generate() -> Any:
    tokenizer, model = tiny.text_tokenizer(), lm()
    inputs = tokenizer(THREE[0], return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=2, stop_strings=["!!"], tokenizer=tokenizer)


_CALLS: dict[str, Callable[[], Any]] = {
    "text": lambda: generator()(THREE[0], **GREEDY),
    "texts": lambda: generator()(THREE[:2], batch_size=2, **GREEDY),
    "chat": lambda: generator()(CHAT, **GREEDY),
    "lazy": lambda: list(generator()(each(THREE[:2]), **GREEDY)),
}
_ON_SPANS: dict[str, Callable[[], Any]] = {
    "data set": lambda: list(generator()(Items(THREE[:2]), **GREEDY)),
    "chats": lambda: generator()([CHAT, CHAT[1:]], **GREEDY),
    "parts": lambda: generator()(_IMAGE, **GREEDY),
    "several sequences": lambda: generator()(THREE[0], num_beams=2, num_return_sequences=2, **GREEDY),
    "new text only": lambda: generator()(THREE[0], return_full_text=False, **GREEDY),
    "classifier": lambda: classifier()(THREE[:2]),
    "generate with stop strings": _generate,
    "model": lambda: called(tiny.classifier(), IDS),
}


def _with(settings: dict[str, Any], call: Callable[[], Any], stage: Stage) -> Any:
    stage.instrument(**settings)
    return call()


for _mode in MODES:
    for _name, _call in _CALLS.items():
        GROUP[f"{_mode}, {_name}"] = partial(_with, {"capture_content": _mode}, _call)
    _LATEST = {"capture_content": _mode, "latest_conventions": True}
    GROUP[f"{_mode}, latest, chat"] = partial(_with, _LATEST, _CALLS["chat"])
for _name, _call in _ON_SPANS.items():
    GROUP[f"SPAN_ONLY, {_name}"] = partial(_with, {"capture_content": "SPAN_ONLY"}, _call)
GROUP["cut"] = partial(_with, {"capture_content": "SPAN_ONLY", "content_length": 5}, _CALLS["chat"])
