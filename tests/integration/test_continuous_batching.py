"""Continuous batching: one trace for each request, wherever and with whatever else it is computed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
import torch
import transformers
from opentelemetry import trace
from transformers.generation.continuous_batching import continuous_api

from support import tiny
from support.recorder import MODEL_FACTS, Recorder

PROMPTS = [[10, 20, 30], [40, 50, 60, 70]]

V4 = transformers.__version__.startswith("4.")

ROOT = "text_completion LlamaForCausalLM"
REQUEST = (ROOT, "queue", ("forward", "prefill", "decode"))
COPIED = (ROOT, ("forward", "prefill", "decode"))

ATTRIBUTES = {
    "gen_ai.operation.name": "text_completion",
    "gen_ai.provider.name": "huggingface",
    "gen_ai.request.max_tokens": 5,
    "gen_ai.request.model": "LlamaForCausalLM",
    "gen_ai.response.finish_reasons": ("length",),
    "gen_ai.usage.input_tokens": 3,
    "gen_ai.usage.output_tokens": 5,
    "inferspan.batch.size": 1,
    "inferspan.cold": False,
    "inferspan.device": "cpu",
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
    **({} if V4 else {"inferspan.request.do_sample": False}),  # 4.57 fills in what is not set
    "inferspan.sequence.length": 3,
    "inferspan.time_per_output_token": ...,
    "inferspan.time_to_first_token": ...,
}

needs_v5 = pytest.mark.skipif(V4, reason="transformers 4.57 has neither several sequences nor settings of a request")


@pytest.fixture(autouse=True)
def memory_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """4.57 cannot read how much memory a CPU has; nothing else there keeps it from running on one."""
    if V4:
        from transformers.generation.continuous_batching import cache

        monkeypatch.setattr(cache, "get_device_and_memory_breakdown", lambda: (torch.device("cpu"), 2**30, 0, 0))


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """A manager that stops collects garbage twice; without the modules and classes, that is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def model(bare_recorder: Recorder) -> Any:
    """Instrumented, and past its first inference, which is cold."""
    found = new_model()
    bare_recorder.instrument()
    generate(found, [[10]])
    bare_recorder.clear()
    return found


def new_model() -> Any:
    found = tiny.causal_lm()
    if V4:
        found.set_attn_implementation("sdpa_paged")
    return found


def settings(blocks: int = 32, page: int = 256, **generation: Any) -> dict[str, Any]:
    """A small cache, greedy decoding."""
    sizes = {"num_blocks": blocks, "max_batch_tokens": 64}
    config = transformers.GenerationConfig(
        **{"do_sample": False, "eos_token_id": 2, "pad_token_id": 0, **(sizes if V4 else {}), **generation}
    )
    if V4:
        return {"generation_config": config}
    return {
        "generation_config": config,
        "continuous_batching_config": transformers.ContinuousBatchingConfig(page_size=page, **sizes),
    }


def generate(model: Any, prompts: list[list[int]], max_new_tokens: int = 5, **options: Any) -> dict[str, list[int]]:
    outputs = model.generate_batch(prompts, progress_bar=False, max_new_tokens=max_new_tokens, **settings(**options))
    return {name: output.generated_tokens for name, output in outputs.items()}


@contextmanager
def manager_of(model: Any, **options: Any) -> Iterator[Any]:
    """A manager that is not started yet, stopped afterwards."""
    manager = model.init_continuous_batching(**settings(), **options)
    try:
        yield manager
    finally:
        manager.stop(block=True)


def wait_for(manager: Any, count: int) -> None:
    """Takes results until so many requests are over."""
    while count:
        output = manager.get_result(timeout=60)
        assert output is not None
        count -= output.status.name in ("FINISHED", "FAILED")


class Gate:
    """Holds the generation thread after so many forwards of the model, until it is opened."""

    def __init__(self, model: Any, forwards: int) -> None:
        self.left, self.reached, self.opened = forwards, Event(), Event()
        model.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            assert self.opened.wait(60)


def requests(recorder: Recorder) -> list[Any]:
    """The request's root spans, by the order in which they were opened."""
    return [span for span in recorder.spans() if span.name == ROOT]


# -- generate_batch ------------------------------------------------------------------------------------------------


def test_generate_batch_gives_one_trace_for_each_request(bare_recorder: Recorder) -> None:
    model = new_model()
    plain = generate(model, PROMPTS)
    bare_recorder.instrument()
    with bare_recorder.tracer.start_as_current_span("job"):
        assert generate(model, PROMPTS) == plain
    assert bare_recorder.trees() == [("job", REQUEST, REQUEST)]
    by_length = {
        span.attributes["gen_ai.usage.input_tokens"]: dict(span.attributes) for span in requests(bare_recorder)
    }
    assert sorted(by_length) == [3, 4]
    assert {found["inferspan.cold"] for found in by_length.values()} == {True, False}
    for length, found in by_length.items():
        expected = {
            **ATTRIBUTES,
            "gen_ai.usage.input_tokens": length,
            "inferspan.sequence.length": length,
            "inferspan.cold": found["inferspan.cold"],
        }
        assert set(found) - MODEL_FACTS == set(expected)
        assert {name: found[name] for name, value in expected.items() if value is not ...} == {
            name: value for name, value in expected.items() if value is not ...
        }


def test_generate_batch_without_a_span_gives_a_root_for_each_request(model: Any, bare_recorder: Recorder) -> None:
    generate(model, PROMPTS[:1])
    assert bare_recorder.trees() == [REQUEST]
    assert bare_recorder.attributes(ROOT) == ATTRIBUTES
    assert bare_recorder.attributes("queue") == {}
    assert bare_recorder.attributes("forward") == {}
    assert bare_recorder.attributes("prefill") == {}
    # 4.57 computes one token more than it may return
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": 5 if V4 else 4}


def test_generate_batch_times_lie_within_the_trace(model: Any, bare_recorder: Recorder) -> None:
    generate(model, PROMPTS[:1])
    root, prefill = bare_recorder.span(ROOT), bare_recorder.span("prefill")
    first = root.attributes["inferspan.time_to_first_token"]
    assert first == pytest.approx((prefill.end_time - root.start_time) * 1e-9, abs=1e-6)
    assert bare_recorder.span("queue").start_time - root.start_time < 10_000_000
    assert bare_recorder.span("queue").end_time <= prefill.start_time


def test_generate_batch_gives_the_points_of_each_request(model: Any, bare_recorder: Recorder) -> None:
    before = bare_recorder.counts("gen_ai.client.operation.duration", "gen_ai.request.model")
    generate(model, PROMPTS)
    bare_recorder.spans()
    after = bare_recorder.counts("gen_ai.client.operation.duration", "gen_ai.request.model")
    assert before == {"LlamaForCausalLM": 1}
    assert after == {"LlamaForCausalLM": 3}
    assert bare_recorder.counts("gen_ai.server.time_to_first_token", "gen_ai.request.model") == after
    assert bare_recorder.counts("inferspan.phase.duration", "inferspan.phase") == {
        "queue": 3,
        "forward": 3,
        "prefill": 3,
        "decode": 3,
    }


def test_generate_batch_request_that_ends_says_so(model: Any, bare_recorder: Recorder) -> None:
    (tokens,) = generate(model, PROMPTS[:1]).values()
    bare_recorder.clear()
    (short,) = generate(model, PROMPTS[:1], eos_token_id=tokens[1]).values()
    assert short == tokens[: tokens.index(tokens[1]) + 1]
    assert bare_recorder.attributes(ROOT) == {
        **ATTRIBUTES,
        "gen_ai.usage.output_tokens": len(short),
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": len(short) - 1}


@pytest.mark.parametrize("eos_token_id", [pytest.param(None, id="none"), pytest.param([2, 3], id="several")])
def test_generate_batch_with_any_form_of_end_id_counts(eos_token_id: Any, model: Any, bare_recorder: Recorder) -> None:
    if V4 and eos_token_id is not None:
        pytest.skip("transformers 4.57 compares one end id only")
    generate(model, PROMPTS[:1], eos_token_id=eos_token_id)
    assert bare_recorder.attributes(ROOT) == ATTRIBUTES


def test_generate_batch_settings_of_the_configuration_are_those_of_the_request(
    model: Any, bare_recorder: Recorder
) -> None:
    config = settings(max_new_tokens=5, do_sample=True, temperature=0.7, top_p=0.9)
    model.generate_batch(PROMPTS[:1], progress_bar=False, **config)
    assert bare_recorder.attributes(ROOT) == {
        **ATTRIBUTES,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.top_p": 0.9,
        "inferspan.request.do_sample": True,
    }


@needs_v5
@pytest.mark.parametrize(
    ("blocks", "trees"),
    [
        pytest.param(32, (REQUEST, COPIED, COPIED), id="copied-in-the-cache"),
        pytest.param(2, (REQUEST, COPIED, REQUEST), id="one-without-room-is-computed-anew"),
    ],
)
def test_generate_batch_several_sequences_are_requests_each(
    blocks: int, trees: tuple[Any, ...], model: Any, bare_recorder: Recorder
) -> None:
    with bare_recorder.tracer.start_as_current_span("job"):
        outputs = generate(model, PROMPTS[:1], blocks=blocks, num_return_sequences=3, do_sample=True)
    assert [len(tokens) for tokens in outputs.values()] == [5, 5, 5]
    assert bare_recorder.trees() == [("job", *trees)]
    for span in requests(bare_recorder):
        attributes = {name: ... if ATTRIBUTES.get(name) is ... else value for name, value in span.attributes.items()}
        assert attributes == {**ATTRIBUTES, "inferspan.request.do_sample": True}


@needs_v5
def test_generate_batch_request_restarted_by_the_scheduler_is_one_trace(
    model: Any, bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching.requests import RequestState

    restarts = []
    restart = RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        RequestState, "create_equivalent_initial_request", lambda state: restarts.append(state) or restart(state)
    )
    outputs = generate(model, PROMPTS, max_new_tokens=20, blocks=4, page=8)
    assert restarts
    assert bare_recorder.trees() == [REQUEST, REQUEST]
    assert sorted(
        (span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.usage.output_tokens"])
        for span in requests(bare_recorder)
    ) == sorted((len(prompt), len(tokens)) for prompt, tokens in zip(PROMPTS, outputs.values(), strict=True))


# -- the manager -------------------------------------------------------------------------------------------------------


def test_manager_request_belongs_to_the_span_that_submitted_it(model: Any, bare_recorder: Recorder) -> None:
    tracer = bare_recorder.tracer
    with manager_of(model) as manager, tracer.start_as_current_span("service"):
        for index, prompt in enumerate(PROMPTS):
            with tracer.start_as_current_span(f"http {index}"):
                manager.add_request(prompt, max_new_tokens=5)
        manager.start()
        wait_for(manager, 2)
    names = {span.context.span_id: span.name for span in bare_recorder.spans()}
    assert {
        names[span.parent.span_id]: span.attributes["gen_ai.usage.input_tokens"] for span in requests(bare_recorder)
    } == {"http 0": 3, "http 1": 4}


def test_manager_streamed_request_says_so(model: Any, bare_recorder: Recorder) -> None:
    with manager_of(model, **({"streaming": True} if V4 else {})) as manager:
        manager.add_request(PROMPTS[0], "mine", 5, **({} if V4 else {"streaming": True}))
        manager.start()
        lengths = []
        for output in manager.request_id_iter("mine"):
            lengths.append(len(output.generated_tokens))
            if output.status.name == "FINISHED":
                break
    assert max(lengths) == 5
    assert bare_recorder.trees() == [REQUEST]
    assert bare_recorder.attributes(ROOT) == {
        **ATTRIBUTES,
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": ...,
    }


def test_manager_cancelled_request_tells_what_it_did(model: Any, bare_recorder: Recorder) -> None:
    gate = Gate(model, 3)
    with manager_of(model) as manager:
        name = manager.add_request(PROMPTS[0], max_new_tokens=50)
        manager.start()
        assert gate.reached.wait(60)
        manager.cancel_request(name)
        gate.opened.set()
    assert bare_recorder.trees() == [REQUEST]
    expected = {
        **ATTRIBUTES,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.usage.output_tokens": 3,
        "inferspan.cancelled": True,
    }
    del expected["gen_ai.response.finish_reasons"]
    assert bare_recorder.attributes(ROOT) == expected
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": 2}
    assert {span.status.status_code for span in bare_recorder.spans()} == {trace.StatusCode.UNSET}
    assert bare_recorder.points("inferspan.inference.errors") == []


def test_manager_cancelled_in_the_queue_leaves_the_others(model: Any, bare_recorder: Recorder) -> None:
    gate = Gate(model, 1)
    with manager_of(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()
        assert gate.reached.wait(60)
        manager.cancel_request(manager.add_request(PROMPTS[1], max_new_tokens=5))
        gate.opened.set()
        wait_for(manager, 1)
    assert bare_recorder.trees() == [REQUEST, (ROOT, "queue")]
    computed, cancelled = requests(bare_recorder)
    assert "inferspan.cancelled" not in computed.attributes
    assert cancelled.attributes["inferspan.cancelled"] is True


def test_manager_failing_forward_fails_every_request(model: Any, bare_recorder: Recorder) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("secret words")

    gate = Gate(model, 2)
    with manager_of(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()
        assert gate.reached.wait(60)
        manager.add_request(PROMPTS[1], max_new_tokens=5)
        model.register_forward_pre_hook(fail)
        gate.opened.set()
        wait_for(manager, 2)
    assert len(requests(bare_recorder)) == 2
    for span in requests(bare_recorder):
        assert span.attributes["error.type"] == "ConnectionError"
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description is None
        assert "gen_ai.response.finish_reasons" not in span.attributes
    assert [span.attributes["gen_ai.usage.output_tokens"] for span in requests(bare_recorder)] == [2, 0]
    assert bare_recorder.attributes("decode")["error.type"] == "ConnectionError"
    assert bare_recorder.counts("inferspan.inference.errors", "error.type") == {"ConnectionError": 2}


def test_manager_that_cannot_begin_fails_what_waits(
    model: Any, bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("secret words")

    monkeypatch.setattr(continuous_api, "PagedAttentionCache", no_room)
    with manager_of(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()
    assert bare_recorder.trees() == [(ROOT, "queue")]
    assert bare_recorder.attributes(ROOT)["error.type"] == "MemoryError"
    assert bare_recorder.attributes("queue") == {"error.type": "MemoryError"}


@needs_v5
def test_manager_failing_request_leaves_the_others(model: Any, bare_recorder: Recorder) -> None:
    with manager_of(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.add_request(PROMPTS[1], max_new_tokens=5, no_such_setting=1)
        manager.start()
        wait_for(manager, 2)
    assert bare_recorder.trees() == [REQUEST, (ROOT, "queue")]
    computed, failed = requests(bare_recorder)
    assert "error.type" not in computed.attributes
    assert failed.attributes["error.type"] == "ValueError"


def test_manager_dropped_before_it_started_is_cancelled(model: Any, bare_recorder: Recorder) -> None:
    manager = model.init_continuous_batching(**settings())
    manager.add_request(PROMPTS[0], max_new_tokens=5)
    del manager
    gc.collect()
    assert [span.attributes.get("inferspan.cancelled") for span in requests(bare_recorder)] == [True]


def test_generate_beside_continuous_batching_is_traced_as_ever(model: Any, bare_recorder: Recorder) -> None:
    other = tiny.causal_lm()
    gate = Gate(model, 2)
    with manager_of(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()
        assert gate.reached.wait(60)
        other.generate(torch.tensor([[10, 20]]), max_new_tokens=3)
        gate.opened.set()
        wait_for(manager, 1)
    assert sorted(bare_recorder.trees(), key=len) == [(ROOT, ("forward", "prefill", "decode")), REQUEST]
