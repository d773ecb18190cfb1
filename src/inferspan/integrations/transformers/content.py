"""Prompts and completions in what pipelines and ``generate()`` take and give. Used only where the user has opted in.

A message has the parts that the conventions' JSON schemas give it: text, reasoning, calls of tools and their results,
and what is no text. Of an image, audio or a video never the bytes are kept, nor a path: only that there was one, or
its URI without user, query and fragment, which may hold credentials. Nothing is parsed: reasoning and calls that a
model has written as text are text, unless transformers has taken them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from math import isfinite
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from inferspan.core.messages import Content, Message
from inferspan.integrations.tensors import are_ids, ids_of, rows_of
from inferspan.integrations.transformers import inputs
from inferspan.integrations.transformers.chats import is_message
from inferspan.integrations.transformers.settings import Loop, look_up

_MESSAGES_MAX = 64
_PARTS_MAX = 64
_NODES_MAX = 1000
_DEPTH_MAX = 16
_INT_BITS_MAX = 1024

Part = dict[str, Any]

_TEXTS = ("text", "text_pair", "question", "context", "query")
_COMPLETIONS = ("generated_text", "summary_text", "translation_text", "answer", "text", "label")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TOOL_ROLES = ("tool", "function")
# what a key of an input, or of a result, holds; None: what the pipeline's task says
_MEDIA = {"image": "image", "images": "image", "audio": "audio", "video": "video", "videos": "video"}
_RAW = ("raw", "array", "bytes", "path", "url")
_GENERATED = {"generated_image": "image", "generated_audio": "audio", "audio": "audio"}
_PART_MODALITIES = {"image": "image", "audio": "audio", "video": "video", "file": "document", "document": "document"}
_IMAGE_TASKS = ("image", "visual", "document", "object", "depth", "mask", "keypoint")
_TASK_MODALITIES = {"audio": "audio", "speech": "audio", "video": "video", **dict.fromkeys(_IMAGE_TASKS, "image")}
_SCHEME = re.compile(r"(?!file:|[a-z]:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)


# -- pipelines ---------------------------------------------------------------------------------------------------------


def note_input(content: Content, item: Any, task: str | None) -> None:
    """What a pipeline begins to process; ``task`` where that is no text."""
    content.is_read = True
    words = _TASK_MODALITIES.items() if task is not None else ()
    _add(
        content.input,
        messages_of(item, next((modality for word, modality in words if word in str(task)), None)),
        content,
    )


def note_output(content: Content, outputs: Any, settings: Mapping[str, Any], result: Any) -> None:
    """What a pipeline has made of the ``outputs`` of its model: without the prompt, which it puts before the completion
    unless ``settings`` say otherwise."""
    prompt = outputs.get("prompt_text") if isinstance(outputs, Mapping) else None
    if not content.is_read:  # but preprocessed in another process
        _add(content.input, messages_of(prompt), content)
    is_full = getattr(settings.get("return_type"), "name", "FULL_TEXT") == "FULL_TEXT"
    _add(content.output, completions_of(result, prompt if is_full else None), content)


def _add(kept: list[Message], messages: Iterable[Message], content: Content) -> None:
    for message in messages:
        if len(kept) == _MESSAGES_MAX:
            content.is_cut = True
            break
        kept.append(message)


def messages_of(value: Any, modality: str | None = None) -> Iterator[Message]:
    """The messages in a pipeline's input; ``modality`` where what is no chat and no part of a dict is no text."""
    kind = type(value)
    if is_message(value):
        yield _message(value)
    elif kind in (list, tuple):
        for item in value:
            yield from messages_of(item, modality)
    elif kind.__name__ == "Chat":
        yield from messages_of(getattr(value, "messages", None))
    elif kind is dict:
        yield from _fields(value, modality)
    elif modality is not None and value is not None:
        yield _said("user", [_media(value, modality)])
    elif kind is str:
        yield _said("user", [_text_part(value)])


def _fields(value: dict[Any, Any], modality: str | None) -> Iterator[Message]:
    """Several inputs by their names: one message if not all of them are text."""
    texts = [message for key in _TEXTS for message in messages_of(value.get(key))]
    media = [_media(item, kind) for key, kind in _MEDIA.items() for item in _each(value.get(key))]
    if not media and modality is not None:
        media = [_media(value[key], modality) for key in _RAW if key in value][:1]
    if media:
        yield _said("user", [*media, *(part for message in texts for part in message["parts"])])
    else:
        yield from texts


def completions_of(value: Any, prompt: Any = None) -> Iterator[Message]:
    """The completions in a pipeline's result; ``prompt`` is what may stand before them."""
    if type(value) is list:
        for item in value:
            yield from completions_of(item, prompt)
    elif type(value) is dict:
        if prompt is not None:
            prompt = value.get("input_text", prompt)  # where one call has several
        for key in _COMPLETIONS:
            found = value.get(key)
            if type(found) is str:
                yield _said("assistant", [_text_part(_new(found, prompt))])
                return
            if type(found) is list and found and type(found[-1]) is dict and "role" in found[-1]:
                yield _message(_answer(found, prompt))
                return
        yield from (_said("assistant", [_media(None, kind)]) for key, kind in _GENERATED.items() if key in value)


def _answer(chat: list[Any], prompt: Any) -> dict[str, Any]:
    """The last message of a chat; only what is new of it, where the prompt's last one was continued."""
    asked, last = getattr(prompt, "messages", prompt), chat[-1]
    if type(asked) is not list or len(asked) != len(chat) or type(asked[-1]) is not dict:
        return dict(last)
    text, begun = last.get("content"), asked[-1].get("content")
    if type(text) is list and type(begun) is list and text and begun:
        text, begun = (part.get("text") if type(part) is dict else part for part in (text[-1], begun[-1]))
    return {"role": last["role"], "content": _new(text, begun) if type(text) is str else text}


def _new(text: str, prompt: Any) -> str:
    return text.removeprefix(prompt) if type(prompt) is str else text


# -- messages ----------------------------------------------------------------------------------------------------------


def _said(role: str, parts: list[Part]) -> Message:
    return {"role": role, "parts": parts}


def _text_part(text: str) -> Part:
    return {"type": "text", "content": text}


def _message(value: dict[str, Any]) -> Message:
    role, name, content = value.get("role"), value.get("name"), value.get("content")
    parts: list[Part] = [{"type": "reasoning", "content": text} for text in _strings(value, _REASONING)][:1]
    if role in _TOOL_ROLES:
        response = list(_parts(content)) if type(content) is list else _plain(content, [_NODES_MAX])
        parts.append(
            _known({"type": "tool_call_response", "id": _text(value.get("tool_call_id")), "response": response})
        )
        role = "tool"
    else:
        parts += _parts(content)
    calls = value.get("tool_calls")
    for call in (*_each(calls if type(calls) is list else None), value.get("function_call")):
        if type(call) is dict:
            parts.append(_call(call))
    if len(parts) > 1:  # an empty text beside a call says nothing
        parts = [part for part in parts if part.get("content") != ""]
    said = _said(role if type(role) is str else "user", parts)
    return {**said, "name": name} if type(name) is str else said


def _call(call: dict[str, Any]) -> Part:
    function = call["function"] if type(call.get("function")) is dict else call
    part: Part = {"type": "tool_call", "id": _text(call.get("id")), "name": _text(function.get("name")) or ""}
    if "arguments" in function:
        part["arguments"] = _plain(function["arguments"], [_NODES_MAX])
    return _known(part)


def _parts(content: Any) -> Iterator[Part]:
    """The parts of a message's content."""
    for item in _each(content):
        if type(item) is str:
            yield _text_part(item)
        elif type(item) is dict:
            yield _part(item)


def _part(item: dict[str, Any]) -> Part:
    kind = _text(item.get("type")) or "text"
    modality = _PART_MODALITIES.get(kind.removeprefix("input_").removesuffix("_url"))
    if modality is not None:
        return _media_part(item, modality, kind)
    if kind in _REASONING:
        return {"type": "reasoning", "content": next(_strings(item, (kind, "text", "content")), "")}
    if type(item.get("text")) is str:
        return _text_part(item["text"])
    return {"type": kind}


def _media_part(item: dict[str, Any], modality: str, kind: str) -> Part:
    keys = (kind, modality, f"{modality}_url", "url", "uri", "path", "base64", "data")
    source = next((item[key] for key in keys if item.get(key) is not None), None)
    if type(source) is dict:
        source = source.get("url")
    part = _media(source, modality)
    mime = next(_strings(item, ("mime_type", "media_type")), None)
    return part if mime is None else {**part, "mime_type": mime}


def _media(source: Any, modality: str) -> Part:
    """That there was an image, audio or a video, and its URI if it has one that others can read."""
    if type(source) is str and _SCHEME.match(source):
        uri = urlsplit(source)
        where = urlunsplit((uri.scheme, uri.netloc.rpartition("@")[2], uri.path, "", ""))
        return {"type": "uri", "modality": modality, "uri": where}
    part: Part = {"type": "blob", "modality": modality}
    if type(source) is str and source.startswith("data:"):
        mime = source[5:256].partition(",")[0].partition(";")[0]
        return {**part, "mime_type": mime} if mime else part
    return part


# -- generate() --------------------------------------------------------------------------------------------------------


def note_generated(content: Content, model: Any, given: Mapping[str, Any], result: Any) -> None:
    """What a ``generate()`` was given and returned, where it has a tokenizer with it, or its streamer has one, and the
    ids are on the host. They are decoded later."""
    tokenizer = given.get("tokenizer")
    if tokenizer is None:
        tokenizer = getattr(given.get("streamer"), "tokenizer", None)
    decode = getattr(tokenizer, "convert_tokens_to_string", None)
    if decode is None:
        return
    ids = given.get("input_ids")
    if ids is None:
        ids = given.get("inputs")
    sequences = result.get("sequences") if isinstance(result, Mapping) else result
    mask = rows_of(given.get("attention_mask")) or ()
    prompts = (rows_of(ids) if are_ids(ids) else None) or []
    for place, (row, kept) in enumerate(zip(prompts, mask, strict=False)):
        prompts[place] = [id_ for id_, is_kept in zip(row, kept, strict=False) if is_kept]
    end_ids = frozenset(ids_of(look_up("eos_token_id", model, given)))
    start = inputs.prompt_length(Loop(model, given, 0), sequences, 0)
    rows = rows_of(sequences) or ()
    begins = ids_of(look_up("decoder_start_token_id", model, given))
    if start == 1 and rows and begins and rows[0][0] not in begins:
        start = 0  # Whisper's own generate() leaves out what it begins with
    answers = [_until(row[start:], end_ids) for row in rows]
    content.later.append(partial(_decode, content, tokenizer, decode, prompts, answers))


def _until(row: list[int], end_ids: frozenset[int]) -> list[int]:
    return row[: next((place for place, id_ in enumerate(row) if id_ in end_ids), len(row))]


def _decode(
    content: Content, tokenizer: Any, decode: Callable[..., str], prompts: list[list[int]], answers: list[list[int]]
) -> None:
    # Not by its decode(): that lets other threads run while it borrows the tokenizer, and the program's own call, which
    # sets how to pad, would fail there with "Already borrowed".
    for role, kept, rows in (("user", content.input, prompts), ("assistant", content.output, answers)):
        texts = (decode(tokenizer.convert_ids_to_tokens(row, skip_special_tokens=True)) for row in rows)
        _add(kept, (_said(role, [_text_part(text)]) for text in texts), content)


# -- plain data --------------------------------------------------------------------------------------------------------


def _plain(value: Any, nodes: list[int], depth: int = 0) -> Any:
    """A copy of plain data that JSON can write: of anything else the name of its type. ``nodes`` are left to copy."""
    kind = type(value)
    nodes[0] -= 1
    if value is None or kind in (str, bool) or (kind is int and value.bit_length() < _INT_BITS_MAX):
        return value
    if kind is float:
        return value if isfinite(value) else str(value)
    if nodes[0] > 0 and depth < _DEPTH_MAX:
        if kind in (list, tuple):
            return [_plain(item, nodes, depth + 1) for item in islice(value, nodes[0])]
        if kind is dict:
            items = islice(value.items(), nodes[0])
            return {_key(key): _plain(item, nodes, depth + 1) for key, item in items}
    return f"<{kind.__name__}>"


def _key(key: Any) -> str:
    return key if type(key) is str else str(_plain(key, [1]))


def _each(value: Any) -> Iterator[Any]:
    """The first items of a list, or the one that it is."""
    if type(value) in (list, tuple):
        yield from value[:_PARTS_MAX]
    elif value is not None:
        yield value


def _strings(value: dict[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    return (found for key in keys if type(found := value.get(key)) is str and found)


def _text(value: Any) -> str | None:
    return value if type(value) is str else None


def _known(part: Part) -> Part:
    """Without an id that is not there. A response that is ``None`` is one."""
    return {key: value for key, value in part.items() if value is not None or key != "id"}
