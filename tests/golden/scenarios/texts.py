"""Tokenizers called directly, and ``from_pretrained``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import CHAT, GREEDY, IDS, THREE, called
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("texts")

_CALLS: dict[str, Callable[[Any], Any]] = {
    "call": lambda t: t(THREE[0]),
    "call, list": lambda t: t(THREE),
    "call, padded tensors": lambda t: t(text=THREE, padding=True, return_tensors="pt"),
    "call, arrays": lambda t: t(THREE[0], return_tensors="np"),
    "encode": lambda t: t.encode(THREE[0]),
    "encode, tensors": lambda t: t.encode(THREE[0], return_tensors="pt"),
    "chat": lambda t: t.apply_chat_template(CHAT),
    "chats": lambda t: t.apply_chat_template([CHAT, CHAT]),
    "chat, tensors": lambda t: t.apply_chat_template(CHAT, return_dict=True, return_tensors="pt"),
    "chat, as text": lambda t: t.apply_chat_template(CHAT, tokenize=False),
    "decode": lambda t: t.decode([10, 20, 30]),
    "decode, tensor": lambda t: t.decode(torch.tensor([10, 20, 30])),
    "decode, batch": lambda t: t.batch_decode([[10, 20], [30]]),
    "decode, batch of tensors": lambda t: t.batch_decode(torch.tensor([[10, 20]])),
    "convert": lambda t: t.convert_tokens_to_ids(["<s>"]),
}


def _call(call: Callable[[Any], Any], stage: Stage) -> Any:
    stage.instrument()
    return call(tiny.text_tokenizer())


GROUP.update({f"tokenizer, {name}": partial(_call, call) for name, call in _CALLS.items()})


@GROUP
def tokenizer_with_a_name(stage: Stage) -> Any:
    stage.instrument()
    for name in ("org/reader", "/home/someone/secret project/reader"):
        tiny.text_tokenizer(name_or_path=name)(THREE[0])


@GROUP
def tokenizer_error(stage: Stage) -> Any:
    stage.instrument()
    tokenizer = tiny.text_tokenizer()
    tokenizer.chat_template = None
    return raised(lambda: tokenizer.apply_chat_template(CHAT)).split()[:2]


@GROUP
def tokenizer_model_decode(stage: Stage) -> Any:
    """Three spans under the program's."""
    stage.instrument()
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    with stage.tracer.start_as_current_span("request"):
        inputs = tokenizer(THREE, padding=True, return_tensors="pt")
        return tokenizer.batch_decode(called(model, **inputs).logits.argmax(-1))


@GROUP
def tokenizer_in_a_block(stage: Stage) -> Any:
    """Calls that follow each other are one phase."""
    stage.instrument()
    tokenizer = tiny.text_tokenizer()
    with inferspan.inference("answer"):
        ids = [tokenizer.encode(text) for text in THREE]
        return tokenizer.decode(ids[0])


# -- loading -----------------------------------------------------------------------------------------------------------


def _saved(stage: Stage) -> str:
    path = stage.folder / "secret project" / "storyteller"
    tiny.causal_lm().save_pretrained(path)
    return str(path)


Llama = transformers.LlamaForCausalLM
# Each looks the method up when it is called: bound before, it would be the one that is not instrumented.
_LOADS: dict[str, Callable[[str], Any]] = {
    "plain": lambda path: Llama.from_pretrained(path),
    "auto": lambda path: transformers.AutoModelForCausalLM.from_pretrained(path),
    "dtype": lambda path: Llama.from_pretrained(path, dtype=torch.bfloat16),
    "attention": lambda path: Llama.from_pretrained(path, attn_implementation="eager"),
    "revision": lambda path: Llama.from_pretrained(path, revision="v2.1"),
    "loading info": lambda path: Llama.from_pretrained(path, output_loading_info=True)[0],
    "missing": lambda path: raised(lambda: Llama.from_pretrained(f"{path}/missing")).split()[:2],
}


def _load(load: Callable[[str], Any], stage: Stage) -> Any:
    path = _saved(stage)
    stage.instrument()
    return load(path)


GROUP.update({f"load, {name}": partial(_load, load) for name, load in _LOADS.items()})


@GROUP
def load_then_cold_then_warm(stage: Stage) -> Any:
    path = _saved(stage)
    stage.instrument()
    with stage.tracer.start_as_current_span("startup"):
        model = Llama.from_pretrained(path)
    return [model.generate(IDS, max_new_tokens=2), model.generate(IDS, max_new_tokens=2), called(model, IDS)]


@GROUP
def load_of_a_pipeline(stage: Stage) -> Any:
    path = _saved(stage)
    stage.instrument()
    pipe = transformers.pipeline("text-generation", model=path, tokenizer=tiny.text_tokenizer(), device="cpu")
    return pipe(THREE[0], **GREEDY)


@GROUP
def load_with_names_as_classes(stage: Stage) -> Any:
    path = _saved(stage)
    stage.instrument(local_model_name="class")
    return Llama.from_pretrained(path).generate(IDS, max_new_tokens=2)


@GROUP
def load_again(stage: Stage) -> Any:
    path = _saved(stage)
    stage.instrument()
    return [called(Llama.from_pretrained(path), IDS), called(Llama.from_pretrained(path), IDS)]
