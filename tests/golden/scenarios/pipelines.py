"""Every way to call a pipeline."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from transformers.pipelines.pt_utils import KeyDataset

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import (
    CHAT,
    GREEDY,
    LABELS,
    THREE,
    Items,
    Stream,
    chunked,
    classifier,
    each,
    generator,
)
from golden.stage import Group, Stage

GROUP = Group("pipelines")

Pipe = Callable[..., Any]
_BEAMS = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
_KEYED = [{"text": text, "id": index} for index, text in enumerate(THREE)]


def _mode(make: Pipe, call: Callable[[Any], Any], stage: Stage) -> Any:
    stage.instrument()
    return call(make())


_CLASSIFIED: dict[str, Callable[[Any], Any]] = {
    "single": lambda p: p(THREE[0]),
    "list": lambda p: p(THREE),
    "list of one": lambda p: p(THREE[:1]),
    "empty list": lambda p: raised(lambda: p([])),
    "batches of two": lambda p: p(THREE, batch_size=2),
    "one padded batch": lambda p: p(THREE, batch_size=8),
    "batch without padding": lambda p: p(THREE[:1] * 3, batch_size=3),
    "pair of texts": lambda p: p({"text": THREE[0], "text_pair": THREE[1]}),
    "generator": lambda p: list(p(each(THREE))),
    "generator, batches of two": lambda p: list(p(each(THREE), batch_size=2)),
    "data set": lambda p: list(p(Items(THREE), batch_size=3)),
    "data set without a length": lambda p: list(p(Stream(THREE), batch_size=3)),
    "data set of keys": lambda p: list(p(KeyDataset(Items(_KEYED), "text"), batch_size=2)),
    "no workers": lambda p: list(p(Items(THREE), num_workers=0)),
    "one worker": lambda p: list(p(Items(THREE), num_workers=1)),
    "list, one worker": lambda p: p(THREE, num_workers=1, batch_size=2),
    "top k": lambda p: p(THREE[0], top_k=None),
}
_GENERATED: dict[str, Callable[[Any], Any]] = {
    "text, single": lambda p: p(THREE[0], **GREEDY),
    "text, list": lambda p: p(THREE, **GREEDY),
    "text, batches of two": lambda p: p(THREE, batch_size=2, **GREEDY),
    "text, one token": lambda p: p(THREE[0], max_new_tokens=1, do_sample=False),
    "text, sampled by default": lambda p: p(THREE[0], max_new_tokens=5),
    "text, several sequences": lambda p: p(THREE[0], **_BEAMS),
    "text, new text only": lambda p: p(THREE[0], return_full_text=False, **GREEDY),
    "text, lazy": lambda p: list(p(each(THREE), **GREEDY)),
    "text, tensors": lambda p: p(THREE[0], return_tensors=True, **GREEDY),
    "chat": lambda p: p(CHAT, **GREEDY),
    "chats": lambda p: p([CHAT, CHAT[1:]], batch_size=2, **GREEDY),
    "chats, lazy": lambda p: list(p(each([CHAT, CHAT[1:]]), **GREEDY)),
}
_CHUNKED: dict[str, Callable[[Any], Any]] = {
    "chunks, single": lambda p: p(THREE[0], **LABELS),
    "chunks, list": lambda p: p(THREE[:2], **LABELS),
    "chunks, batches across items": lambda p: p(THREE[:2], batch_size=4, **LABELS),
    "chunks, lazy": lambda p: list(p(Items(THREE), batch_size=3, **LABELS)),
}

GROUP.update({name: partial(_mode, classifier, call) for name, call in _CLASSIFIED.items()})
GROUP.update({name: partial(_mode, generator, call) for name, call in _GENERATED.items()})
GROUP.update({name: partial(_mode, chunked, call) for name, call in _CHUNKED.items()})


def _classifier(stage: Stage) -> Any:
    stage.instrument()
    return classifier()


@GROUP
def batch_size_of_the_pipeline(stage: Stage) -> Any:
    stage.instrument()
    return classifier(batch_size=2)(THREE)


@GROUP
def warm(stage: Stage) -> Any:
    pipe = classifier()
    stage.warmed(lambda: pipe(THREE[1]))
    return pipe(THREE[0])


@GROUP
def cold_and_warm(stage: Stage) -> Any:
    stage.instrument()
    pipe = classifier()
    return [pipe(THREE[0]), pipe(THREE[0])]


@GROUP
def made_before_instrument(stage: Stage) -> Any:
    pipe = classifier()
    before = pipe(THREE[0])
    stage.instrument()
    return [before, pipe(THREE[0])]


@GROUP
def under_a_span_of_the_program(stage: Stage) -> Any:
    pipe = _classifier(stage)
    with stage.tracer.start_as_current_span("request"):
        return [pipe(THREE[0]), list(pipe(each(THREE[:2])))]


# -- lazy results ------------------------------------------------------------------------------------------------------


@GROUP
def lazy_dropped_after_one_item(stage: Stage) -> Any:
    result = iter(_classifier(stage)(each(THREE)))
    first = next(result)
    del result
    gc.collect()
    return first


@GROUP
def lazy_left_by_break(stage: Stage) -> Any:
    found = []
    for item in _classifier(stage)(Items(THREE), batch_size=2):
        found.append(item)
        break
    gc.collect()
    return found


@GROUP
def lazy_never_iterated(stage: Stage) -> Any:
    result = _classifier(stage)(each(THREE))
    kind = type(result).__name__
    del result
    gc.collect()
    return kind


@GROUP
def lazy_iterated_twice(stage: Stage) -> Any:
    result = _classifier(stage)(Items(THREE[:2]))
    both = [list(result), list(result)]
    del result
    gc.collect()
    return both


@GROUP
def lazy_asked_beyond_its_end(stage: Stage) -> Any:
    result = iter(_classifier(stage)(Items(THREE[:1])))
    return [*result, next(result, None), next(result, None)]


@GROUP
def lazy_called_and_consumed_in_different_spans(stage: Stage) -> Any:
    pipe, found = _classifier(stage), []
    with stage.tracer.start_as_current_span("caller"):
        result = pipe(each(THREE[:2]))
    with stage.tracer.start_as_current_span("consumer"):
        for item in result:
            with stage.tracer.start_as_current_span("mine"):
                found.append(item)
    return found


@GROUP
def lazy_consumed_in_another_thread(stage: Stage) -> Any:
    pipe, found = _classifier(stage), []
    with stage.tracer.start_as_current_span("caller"):
        result = pipe(each(THREE))
        thread = threading.Thread(target=lambda: found.extend(result))
        thread.start()
        thread.join()
    return found


@GROUP
def lazy_with_spans_in_the_programs_generator(stage: Stage) -> Any:
    pipe = _classifier(stage)

    def texts() -> Iterator[str]:
        for text in THREE[:2]:
            with stage.tracer.start_as_current_span("read"):
                pass
            yield text

    return list(pipe(texts()))


@GROUP
def lazy_fed_by_a_pipeline(stage: Stage) -> Any:
    """An inference of its own, inside the one that reads it."""
    write, read = generator(), classifier()
    stage.instrument()
    return list(read(write(text, **GREEDY)[0]["generated_text"] for text in THREE[:2]))


@GROUP
def lazy_fed_by_a_lazy_pipeline(stage: Stage) -> Any:
    write, read = generator(), classifier()
    stage.instrument()
    written = write(each(THREE[:2]), **GREEDY)
    return list(read(item[0]["generated_text"] for item in written))


@GROUP
def lazy_in_a_block(stage: Stage) -> Any:
    pipe = _classifier(stage)
    with inferspan.inference("mine"):
        return [pipe(THREE[0]), pipe(THREE[:2], batch_size=2), list(pipe(each(THREE[:2])))]


@GROUP
def lazy_called_in_a_block_and_consumed_behind_it(stage: Stage) -> Any:
    pipe = _classifier(stage)
    with inferspan.inference("mine"):
        result = pipe(each(THREE[:2]))
    return list(result)


@GROUP
def one_after_the_other_in_threads(stage: Stage) -> Any:
    pipe, found = _classifier(stage), []
    for text in THREE[:2]:
        thread = threading.Thread(target=lambda text=text: found.append(pipe(text)))
        thread.start()
        thread.join()
    return found
