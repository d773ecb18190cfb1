"""Small models, pipelines and inputs that many scenarios use. Each call makes new ones: an instance's first inference
is cold, and the text says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from torch import nn

from support import tiny
from support.tiny import SENTENCES

IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
ONE = IDS[:1]
MASK = torch.ones_like(IDS)
ROWS = torch.ones(2, 4)
THREE = [SENTENCES[0], SENTENCES[9], SENTENCES[3]]
GREEDY = {"max_new_tokens": 5, "do_sample": False}
LABELS = {"candidate_labels": ["politics", "science", "sports"]}
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": THREE[0]}]
V4 = transformers.__version__.startswith("4.")


def lm(**overrides: Any) -> Any:
    """A Llama that never ends by itself."""
    return tiny.causal_lm(eos_token_id=None, **overrides)


def classifier(**options: Any) -> Any:
    return transformers.pipeline(
        "text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer(), device="cpu", **options
    )


def generator(**options: Any) -> Any:
    return transformers.pipeline(
        "text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer(), device="cpu", **options
    )


def chunked(**options: Any) -> Any:
    """A ChunkPipeline: three chunks an item, one for each label."""
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model = tiny.classifier(id2label=names, label2id={name: index for index, name in names.items()})
    return transformers.pipeline(
        "zero-shot-classification", model=model, tokenizer=tiny.word_tokenizer(), device="cpu", **options
    )


class Items(torch.utils.data.Dataset):
    """A data set with a length."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(torch.utils.data.IterableDataset):
    """A data set without one."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def each(items: Iterable[Any]) -> Iterator[Any]:
    """A generator of the items."""
    yield from items


class Block(nn.Module):
    """A layer of :class:`Net`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Net(nn.Module):
    """A model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x) + 1


def called(model: Any, *inputs: Any, **named: Any) -> Any:
    """The model's result, without gradients."""
    with torch.no_grad():
        return model(*inputs, **named)
