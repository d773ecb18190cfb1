"""Programs that call a tokenizer directly."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

from judge.observe import Case, Seen, Truth
from judge.program import Choices, Family
from support import tiny

TOKENIZERS = {
    "words": tiny.word_tokenizer,
    "text": tiny.text_tokenizer,
    "seq2seq": tiny.seq2seq_tokenizer,
    "whisper": tiny.whisper_tokenizer,
}

AXES: dict[str, tuple[Any, ...]] = {
    "model": tuple(TOKENIZERS),
    "method": ("call", "encode", "chat", "chats", "chat as text", "decode", "batch_decode"),
    "texts": ("one", "list", "list of one", "split", "tuple"),
    "pair": (False, True),
    "padding": (False, True, "max_length"),
    "truncation": (False, True),
    "overflow": (False, True),
    "tensors": (None, "pt", "np"),
    "keyword": (False, True),
    "where": ("direct", "span", "block", "twice", "thread"),
    "seed": tuple(range(8)),
}


def allows(c: Choices) -> bool:
    """Whether the tokenizer takes it."""
    decodes = c["method"] in ("decode", "batch_decode")
    encodes = c["method"] in ("call", "encode")
    many = c["texts"] in ("list", "tuple") or c["overflow"] or c["method"] == "chats"
    return all(
        (
            encodes or not (c["pair"] or c["overflow"] or c["truncation"]),
            not decodes or (not c["padding"] and c["tensors"] in (None, "pt")),
            encodes or c["texts"] == "one",
            not c["overflow"] or (c["truncation"] and c["method"] == "call"),
            not c["method"].startswith("chat") or c["model"] in ("text", "seq2seq"),
            c["method"] != "chat as text" or (not c["padding"] and c["tensors"] is None),
            c["method"] != "encode" or c["texts"] == "one",
            c["tensors"] is None or not many or bool(c["padding"]) or decodes,
            c["texts"] != "split" or (c["method"] == "call" and not c["pair"] and c["model"] != "whisper"),
            c["padding"] is not True or c["method"] != "encode",
        )
    )


def make(c: Choices) -> Case:
    """The program, ready to run."""
    random = Random(c["seed"])
    tokenizer = TOKENIZERS[c["model"]]()
    options: dict[str, Any] = {}
    if c["padding"]:
        options["padding"] = c["padding"]
    if c["padding"] == "max_length":
        options["max_length"] = 40
    if c["truncation"]:
        options.update(truncation=True, max_length=7)
    if c["overflow"]:
        options.update(return_overflowing_tokens=True, stride=2)
    if c["tensors"]:
        options["return_tensors"] = c["tensors"]
    run = partial(_run, c, tokenizer, random.sample(tiny.SENTENCES, 3), options)
    return Case(run, partial(_truth, c), same=str)


def _run(c: Choices, tokenizer: Any, texts: list[str], options: dict[str, Any]) -> Any:
    method = c["method"]
    if method in ("decode", "batch_decode"):
        rows = [[40 + index, 50, 60] for index in range(3)]
        given: Any = rows if method == "batch_decode" else rows[0]
        if c["tensors"] == "pt":
            import torch

            given = torch.tensor(given)
        if c["keyword"]:
            return getattr(tokenizer, method)(**{"token_ids" if method == "decode" else "sequences": given})
        return getattr(tokenizer, method)(given)
    if method.startswith("chat"):
        chats = [[{"role": "user", "content": text}] for text in texts]
        if method == "chats":
            return tokenizer.apply_chat_template(chats, **options)
        return tokenizer.apply_chat_template(chats[0], tokenize=method == "chat", **options)
    of_kind = {
        "one": texts[0],
        "list": texts,
        "list of one": texts[:1],
        "split": texts[0].split(),
        "tuple": tuple(texts),
    }
    text: Any = of_kind[c["texts"]]
    if c["texts"] == "split":
        options = {**options, "is_split_into_words": True}
    pairs = [text] if c["pair"] else []
    if c["pair"] and c["texts"] == "one":
        pairs = [texts[1]]
    if method == "encode":
        return tokenizer.encode(text, *pairs, **options)
    if c["keyword"]:
        return tokenizer(text=text, **({"text_pair": pairs[0]} if pairs else {}), **options)
    return tokenizer(text, *pairs, **options)


def _truth(c: Choices, result: Any, seen: Seen) -> Truth:
    if c["method"] in ("decode", "batch_decode"):
        return Truth(tree="detokenize", phase="detokenize")
    if isinstance(result, str):
        return Truth(tree="tokenize", phase="tokenize")
    ids = result if isinstance(result, list) else result["input_ids"] if hasattr(result, "keys") else result
    ids = ids if isinstance(ids, list) else ids.tolist()
    rows = ids if isinstance(ids[0], list) else [ids]
    return Truth(tree="tokenize", phase="tokenize", rows=len(rows), length=max(len(row) for row in rows))


FAMILY = Family("tokenizer", AXES, allows, make, share=2)
