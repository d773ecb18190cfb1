"""Flushing, shutting down, uninstrumenting in the midst of things, and forks."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry import metrics, trace

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import IDS, ONE, THREE, Items, called, classifier, each, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("lifecycle")


@GROUP
def force_flush(stage: Stage) -> Any:
    """It tells all, and flushes the providers; that is a collection, too."""
    stage.instrument()
    called(tiny.classifier(), IDS)
    flushed = inferspan.force_flush()
    return [flushed, sorted(span.name for span in stage.exporter.get_finished_spans())]


@GROUP
def force_flush_while_not_instrumented(stage: Stage) -> Any:
    return inferspan.force_flush()


@GROUP
def providers_shut_down(stage: Stage) -> Any:
    """They get what is finished before; what comes later goes nowhere."""
    stage.instrument()
    model = tiny.classifier()
    first = called(model, IDS)
    stage.tracer_provider.shutdown()
    return [first, [span.name for span in stage.exporter.get_finished_spans()], called(model, IDS)]


@GROUP
def uninstrument_tells_what_is_finished(stage: Stage) -> Any:
    stage.instrument()
    model = tiny.classifier()
    found = called(model, IDS)
    inferspan.uninstrument()
    return [found, called(model, IDS)]


@GROUP
def uninstrument_inside_a_lazy_result(stage: Stage) -> Any:
    stage.instrument()
    result = iter(classifier()(Items(THREE)))
    first = next(result)
    inferspan.uninstrument()
    return [first, *result]


@GROUP
def uninstrument_inside_a_generation(stage: Stage) -> Any:
    stage.instrument()
    model, calls = lm(), []

    def end(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 2:
            inferspan.uninstrument()

    model.register_forward_hook(end)
    return [model.generate(ONE, max_new_tokens=4), model.generate(ONE, max_new_tokens=2)]


@GROUP
def uninstrument_inside_a_block(stage: Stage) -> Any:
    stage.instrument()
    with inferspan.inference("answer") as block:
        called(tiny.classifier(), IDS)
        inferspan.uninstrument()
        with block.phase("behind"):
            return called(tiny.classifier(), IDS)


@GROUP
def uninstrument_while_another_thread_infers(stage: Stage) -> Any:
    stage.instrument()
    model, inside, go_on = tiny.classifier(), threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        inside.set()
        go_on.wait(60)

    model.register_forward_pre_hook(wait)
    thread = threading.Thread(target=called, args=(model, IDS))
    thread.start()
    inside.wait(60)
    inferspan.uninstrument()
    go_on.set()
    thread.join()


@GROUP
def instrumented_anew(stage: Stage) -> Any:
    """Sums go on; the model stays known."""
    model, found = tiny.classifier(), []
    for _ in range(2):
        stage.instrument()
        found.append(called(model, IDS))
        stage.collect()
        stage.close()
    return found


@GROUP
def instrumented_between_call_and_consumption(stage: Stage) -> Any:
    result = classifier()(Items(THREE[:2]))
    stage.instrument()
    return list(result)


@GROUP
def pipeline_copied_and_pickled(stage: Stage) -> Any:
    import copy
    import pickle

    stage.instrument()
    pipe = classifier()
    return [pickle.loads(pickle.dumps(pipe))(THREE[0]), copy.deepcopy(pipe)(THREE[0])]


# -- forks -------------------------------------------------------------------------------------------------------------


def _in_child(stage: Stage, call: Callable[[], Any]) -> str:
    """What a forked child tells, written by the child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            stage.exporter.clear()
            stage.logs.clear()
            result = call()
            stage.collect()
            lines = [f"result {result!r}", *stage.written()]
        except BaseException as error:  # noqa: BLE001 - the parent tells it
            lines = [f"failed {error!r}"]
        with os.fdopen(writing, "w") as answer:
            answer.write("\n".join(lines))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def _tell_child(stage: Stage, call: Callable[[], Any]) -> None:
    stage.say("child")
    for line in _in_child(stage, call).splitlines():
        stage.say(f"  {line}")


@GROUP
def fork_between_inferences(stage: Stage) -> Any:
    stage.instrument()
    model = tiny.classifier()
    before = called(model, IDS)
    _tell_child(stage, lambda: called(model, ONE).logits.shape)
    return [before, called(model, IDS)]


@GROUP
def fork_inside_a_block(stage: Stage) -> Any:
    stage.instrument()
    model = tiny.classifier()
    with inferspan.inference("answer"):
        _tell_child(stage, lambda: called(model, ONE).logits.shape)
        return called(model, IDS)


@GROUP
def fork_while_a_lazy_result_is_open(stage: Stage) -> Any:
    stage.instrument()
    result = iter(classifier()(each(THREE[:2])))
    first = next(result)
    _tell_child(stage, lambda: len([*result]))
    found = [first, *result]
    gc.collect()
    return found


@GROUP
def fork_before_instrument(stage: Stage) -> Any:
    def child() -> Any:
        stage.instrument()
        return called(tiny.classifier(), ONE).logits.shape

    _tell_child(stage, child)


def _globally(stage: Stage, *, before: bool) -> Any:
    if not before:
        inferspan.instrument()
    trace.set_tracer_provider(stage.tracer_provider)
    metrics.set_meter_provider(stage.meter_provider)
    if before:
        inferspan.instrument()
    return called(tiny.classifier(), IDS).logits.shape


@GROUP
def global_providers_set_before(stage: Stage) -> Any:
    """In a child, since they can be set only once."""
    _tell_child(stage, lambda: _globally(stage, before=True))


@GROUP
def global_providers_set_after(stage: Stage) -> Any:
    _tell_child(stage, lambda: _globally(stage, before=False))


@GROUP
def error_behind_uninstrument(stage: Stage) -> Any:
    stage.instrument()
    inferspan.uninstrument()
    return raised(lambda: lm().generate(IDS, num_return_sequences=3)).split()[:2]
