"""Settings, one by one: what each of them changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any

import transformers
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import GREEDY, IDS, ONE, ROWS, THREE, Net, called, classifier, each, generator, lm
from golden.stage import Group, Stage
from inferspan.config import HOOKS, MEASURES
from support import tiny

GROUP = Group("settings")


# -- hooks and measures ------------------------------------------------------------------------------------------------


def _everything(stage: Stage) -> Any:
    """Each library's part once."""
    path = stage.folder / "storyteller"
    tiny.causal_lm().save_pretrained(path)
    model = transformers.LlamaForCausalLM.from_pretrained(path)
    found = [model.generate(ONE, max_new_tokens=3), classifier()(THREE[0]), called(tiny.classifier(), IDS)]
    return [*found, called(Net().eval(), ROWS), tiny.text_tokenizer()(THREE[0])]


def _hooks(hooks: Any, stage: Stage) -> Any:
    stage.instrument(hooks=hooks)
    return _everything(stage)


GROUP["hooks, all"] = partial(_hooks, "pipelines,generation,continuous_batching,tokenizers,models,modules,loading")
GROUP["hooks, none"] = partial(_hooks, ())
for _hook in HOOKS:
    GROUP[f"hooks, {_hook} alone"] = partial(_hooks, _hook)
for _hook in ("models", "modules", "tokenizers", "loading"):
    GROUP[f"hooks, all but {_hook}"] = partial(_hooks, set(HOOKS) - {_hook})


def _generated() -> Any:
    return lm().generate(IDS, max_new_tokens=4)


def _with(settings: dict[str, Any], call: Callable[[], Any], stage: Stage) -> Any:
    stage.instrument(**settings)
    return call()


for _measure in MEASURES:
    GROUP[f"measure, all but {_measure}"] = partial(_with, {"measure": set(MEASURES) - {_measure}}, _generated)
GROUP["measure, nothing"] = partial(_with, {"measure": ()}, _generated)
GROUP["measure, host allocations"] = partial(_with, {"measure": "host_allocations"}, lambda: classifier()(THREE[:2]))


# -- bounds and switches -----------------------------------------------------------------------------------------------


def _of_two_models() -> Any:
    return [called(tiny.classifier(), IDS), called(lm(), IDS), lm().generate(IDS, max_new_tokens=2)]


def _streamed() -> Any:
    class Silent(transformers.generation.BaseStreamer):
        def put(self, value: Any) -> None:
            pass

        end = lambda self: None  # noqa: E731

    return lm().generate(ONE, max_new_tokens=4, streamer=Silent())


def _failing() -> Any:
    return raised(lambda: lm().generate(IDS, num_return_sequences=3)).split()[:2]


def _embedded() -> Any:
    pipe = transformers.pipeline(
        "feature-extraction", model=tiny.embedder(), tokenizer=tiny.word_tokenizer(), device="cpu"
    )
    return pipe(THREE[0], return_tensors=True)


_LATEST = {"latest_conventions": True}
_SETTINGS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "no children": ({"children_max": 0}, lambda: generator()(THREE[:2], **GREEDY)),
    "two children": ({"children_max": 2}, lambda: generator()(THREE[:2], **GREEDY)),
    "two children, lazy": ({"children_max": 2}, lambda: list(classifier()(each(THREE)))),
    "no token points": ({"token_points_max": 0}, lambda: lm().generate(ONE, max_new_tokens=10)),
    "three token points": ({"token_points_max": 3}, lambda: lm().generate(ONE, max_new_tokens=10)),
    "one model": ({"models_max": 1}, _of_two_models),
    "no metrics": ({"metrics": False}, _generated),
    "no process stats": ({"process_stats": False}, _generated),
    "latest, generate": (_LATEST, _generated),
    "latest, streamed": (_LATEST, _streamed),
    "latest, pipeline": (_LATEST, lambda: generator()(THREE[0], **GREEDY)),
    "latest, error": (_LATEST, _failing),
    "latest, embeddings": (_LATEST, _embedded),
    "embeddings": ({}, _embedded),
    "as text": ({"hooks": "pipelines, models", "children_max": "8", "metrics": "true"}, _generated),
}
GROUP.update({name: partial(_with, settings, call) for name, (settings, call) in _SETTINGS.items()})


@GROUP
def bounds_of_histograms(stage: Stage) -> Any:
    stage.bounds = True
    stage.instrument()
    return generator()(THREE[:2], batch_size=2, **GREEDY)


class Holds(SpanProcessor):
    """Holds the finalizer at the first span that it tells, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = Event(), Event()

    def on_end(self, span: ReadableSpan) -> None:
        if not self.reached.is_set():
            self.reached.set()
            self.opened.wait(60)


def _queue(inferences: int, stage: Stage) -> Any:
    hold = Holds()
    stage.provide(processors=[hold])
    stage.instrument(queue_max=2)
    pipe = classifier()
    pipe(THREE[0])
    hold.reached.wait(60)
    found = [pipe(THREE[0]) for _ in range(inferences)]
    hold.opened.set()
    return found


GROUP["full queue"] = partial(_queue, 4)
GROUP["queue that nobody empties"] = partial(_queue, 10)


@GROUP
def suppressed(stage: Stage) -> Any:
    stage.instrument()
    with suppress_instrumentation():
        return [classifier()(THREE[0]), _generated(), list(classifier()(each(THREE[:1])))]


# -- the environment ---------------------------------------------------------------------------------------------------


def _environment(variables: dict[str, str], call: Callable[[], Any], stage: Stage) -> Any:
    for name, value in variables.items():
        stage.patch.setenv(name, value)
    stage.instrument()
    return call()


_VARIABLES: dict[str, dict[str, str]] = {
    "children": {"INFERSPAN_CHILDREN_MAX": "1"},
    "children, as OTEL_": {"OTEL_INFERSPAN_CHILDREN_MAX": "1"},
    "wrong value": {"INFERSPAN_CHILDREN_MAX": "many"},
    "wrong list": {"INFERSPAN_MEASURE": "flops,nonsense"},
    "unknown variable": {"INFERSPAN_CHILDREN_MAXIMUM": "1", "INFERSPAN_NONSENSE": "1"},
    "latest": {"OTEL_SEMCONV_STABILITY_OPT_IN": "http,gen_ai_latest_experimental"},
    "content": {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_and_event"},
    "rank": {"RANK": "1", "WORLD_SIZE": "4"},
    "rank of one": {"RANK": "0", "WORLD_SIZE": "1"},
    "rank that records": {"RANK": "1", "WORLD_SIZE": "4", "INFERSPAN_RANKS": "1,3"},
    "rank that does not record": {"RANK": "1", "WORLD_SIZE": "4", "INFERSPAN_RANKS": "0,2-3"},
}
GROUP.update({f"environment, {name}": partial(_environment, found, _generated) for name, found in _VARIABLES.items()})


@GROUP
def wrong_keywords(stage: Stage) -> Any:
    wrong: list[dict[str, Any]] = [
        {"children": 1},
        {"nonsense": 1},
        {"children_max": -1},
        {"children_max": True},
        {"metrics": 1},
        {"hooks": "nonsense"},
        {"capture_content": "ALL"},
    ]
    found = []
    for keywords in wrong:
        found.append(raised(lambda keywords=keywords: stage.instrument(**keywords)))
        stage.close()
    return found


@GROUP
def instrumented_twice(stage: Stage) -> Any:
    """The second call changes nothing."""
    stage.instrument(children_max=1)
    stage.instrument(children_max=8)
    return _generated()


@GROUP
def uninstrumented_twice(stage: Stage) -> Any:
    stage.instrument()
    found = _generated()
    for _ in range(2):
        with warnings.catch_warnings():
            inferspan.uninstrument()
    return found
