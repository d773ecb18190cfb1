"""``generate()`` inside something else, at the same time as others, and replaced by the program."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns
from typing import Any

import pytest
import torch
import transformers

import inferspan
from inferspan import semconv
from inferspan.instrumentor import state
from support import tiny
from support.recorder import FIGURES, MODEL_FACTS, Recorder

IDS = torch.tensor([[10, 20, 30, 40]])

ROOT = "text_completion LlamaForCausalLM"
GENERATION = ("forward", "prefill", "decode")


def new_class(**methods: Callable[..., Any]) -> Any:
    """A model of a class that is made now, with methods of its own."""
    cls = type("OwnModel", (transformers.LlamaForCausalLM,), methods)
    return tiny.seeded(lambda: cls(tiny.llama_config()))


def hurried(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A ``generate`` of the program's own, which ends in the general one."""
    return transformers.LlamaForCausalLM.generate(self, *args, **{**kwargs, "max_new_tokens": 3})


def greedy(self: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """A ``generate`` of the program's own, with its own loop."""
    with torch.no_grad():
        for _ in range(3):
            ids = torch.cat([ids, self(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


# -- inside --------------------------------------------------------------------------------------------------------


def test_generate_inside_a_pipeline_counts_once(recorder: Recorder) -> None:
    pipe = transformers.pipeline("text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer())
    pipe("A cat sat", max_new_tokens=4, do_sample=False)
    assert recorder.trees() == [(ROOT, "tokenize", GENERATION, "detokenize")]
    recorder.spans()
    assert recorder.counts("gen_ai.client.operation.duration", "gen_ai.operation.name") == {"text_completion": 1}
    assert recorder.counts("gen_ai.server.time_to_first_token", "gen_ai.operation.name") == {"text_completion": 1}


def test_generate_inside_a_block_is_its_phase(recorder: Recorder) -> None:
    model, tokenizer = tiny.causal_lm(), tiny.text_tokenizer()
    with inferspan.inference("answer", model=model, operation="chat"):
        inputs = tokenizer("A cat sat", return_tensors="pt")
        result = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        tokenizer.batch_decode(result)
    assert recorder.trees() == [("answer", "tokenize", GENERATION, "detokenize")]
    assert recorder.attributes("answer", without=MODEL_FACTS | FIGURES) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "huggingface",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.model": "LlamaForCausalLM",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": inputs["input_ids"].shape[1],
        "gen_ai.usage.output_tokens": 4,
        "inferspan.batch.size": 1,
        "inferspan.cold": True,
        "inferspan.device": "cpu",
        "inferspan.process.cpu_time": ...,
        "inferspan.process.memory_before": ...,
        "inferspan.process.memory_usage": ...,
        "inferspan.request.do_sample": False,
        "inferspan.sequence.length": inputs["input_ids"].shape[1],
        "inferspan.time_per_output_token": ...,
        "inferspan.time_to_first_token": ...,
    }


def test_generate_twice_inside_a_block_adds_up(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    with inferspan.inference("answer"):
        model.generate(IDS, max_new_tokens=4)
        model.generate(IDS, max_new_tokens=2)
    assert recorder.trees() == [("answer", GENERATION, GENERATION)]
    found = recorder.attributes("answer")
    assert found["gen_ai.usage.input_tokens"] == 8
    assert found["gen_ai.usage.output_tokens"] == 6
    assert found["gen_ai.response.finish_reasons"] == ("length", "length")


class TwoCalls(transformers.TextGenerationPipeline):
    """Generates twice for each input, and keeps the second."""

    def _forward(self, model_inputs: Any, **kwargs: Any) -> Any:
        super()._forward(dict(model_inputs), **kwargs)
        return super()._forward(model_inputs, **kwargs)


def test_generate_twice_inside_a_pipelines_phase_counts_both(recorder: Recorder) -> None:
    pipe = TwoCalls(task="text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer())
    pipe("A cat sat", max_new_tokens=4, do_sample=False)
    assert recorder.trees() == [(ROOT, "tokenize", GENERATION, "detokenize")]
    assert recorder.attributes(ROOT)["gen_ai.usage.output_tokens"] == 8


def test_generate_muted_by_suppression_is_not_traced(recorder: Recorder) -> None:
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with suppress_instrumentation():
        tiny.causal_lm().generate(IDS, max_new_tokens=2)
    assert recorder.trees() == []


# -- at the same time ------------------------------------------------------------------------------------------------


def test_generate_in_tasks_gives_each_its_own_trace(recorder: Recorder) -> None:
    model = tiny.causal_lm()

    async def request(index: int) -> None:
        with recorder.tracer.start_as_current_span(f"request {index}"):
            await asyncio.to_thread(model.generate, IDS, max_new_tokens=2 + index)

    async def serve() -> None:
        await asyncio.gather(*(request(index) for index in range(3)))

    asyncio.run(serve())
    assert sorted(recorder.trees()) == [(f"request {index}", (ROOT, GENERATION)) for index in range(3)]
    spans = {span.context.span_id: span for span in recorder.spans()}
    generated = {
        spans[span.parent.span_id].name: span.attributes["gen_ai.usage.output_tokens"]
        for span in spans.values()
        if span.name == ROOT
    }
    assert generated == {"request 0": 2, "request 1": 3, "request 2": 4}


def test_generate_in_threads_gives_each_its_own_trace(bare_recorder: Recorder) -> None:
    model = tiny.causal_lm()
    prompts = [torch.tensor([[10 + index, 20, 30]]) for index in range(6)]

    def run(prompt: torch.Tensor) -> list[int]:
        return model.generate(prompt, max_new_tokens=4)[0].tolist()

    plain = [run(prompt) for prompt in prompts]
    bare_recorder.instrument()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, prompts)) == plain
    assert bare_recorder.trees() == [(ROOT, GENERATION)] * 6
    assert len({span.context.trace_id for span in bare_recorder.spans()}) == 6
    assert sum(span.attributes.get("inferspan.cold", False) for span in bare_recorder.spans()) == 1


# -- replaced --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made_after",
    [pytest.param(False, id="class-made-before"), pytest.param(True, id="class-made-after")],
)
@pytest.mark.parametrize(
    ("generate", "tree", "tokens"),
    [
        pytest.param(hurried, ("forward", "prefill", "decode"), 3, id="ends-in-the-general-one"),
        pytest.param(greedy, "forward", None, id="own-loop"),
    ],
)
def test_generate_overridden_by_a_class_gives_one_trace(
    generate: Any, tree: Any, tokens: int | None, made_after: bool, bare_recorder: Recorder
) -> None:
    model = new_class(generate=generate)
    plain = model.generate(IDS).tolist()
    bare_recorder.instrument()
    if made_after:
        model = new_class(generate=generate)
    assert model.generate(IDS).tolist() == plain
    assert bare_recorder.trees() == [("text_completion OwnModel", tree)]
    assert bare_recorder.attributes("text_completion").get("gen_ai.usage.output_tokens") == tokens
    inferspan.uninstrument()
    assert type(model).__dict__["generate"] is generate


def test_generate_replaced_on_the_instance_gives_one_trace(bare_recorder: Recorder) -> None:
    model = tiny.causal_lm()
    model.generate = types.MethodType(hurried, model)
    plain = model.generate(IDS).tolist()
    bare_recorder.instrument()
    assert model.generate(IDS).tolist() == plain
    assert bare_recorder.trees() == [(ROOT, GENERATION)]
    assert bare_recorder.attributes(ROOT)["gen_ai.usage.output_tokens"] == 3


def test_generate_replaced_on_the_class_while_instrumented_stays_after_us(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.causal_lm()
    bare_recorder.instrument()
    ours = transformers.LlamaForCausalLM.generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "generate", generate, raising=False)
    expected = model.generate(IDS, max_new_tokens=3).tolist()
    assert bare_recorder.trees() == [(ROOT, GENERATION)]
    inferspan.uninstrument()
    bare_recorder.clear()
    assert transformers.LlamaForCausalLM.generate is generate
    assert model.generate(IDS, max_new_tokens=3).tolist() == expected
    assert bare_recorder.trees() == []


def test_generate_of_every_class_is_put_back(bare_recorder: Recorder) -> None:
    def generates() -> dict[type, Any]:
        classes = [transformers.GenerationMixin, *transformers.WhisperForConditionalGeneration.__mro__]
        return {cls: vars(cls)["generate"] for cls in classes if "generate" in vars(cls)}

    plain = generates()
    bare_recorder.instrument()
    assert not set(map(id, plain.values())) & set(map(id, generates().values()))
    inferspan.uninstrument()
    assert generates() == plain


# -- a loop by hand ----------------------------------------------------------------------------------------------------


def test_loop_by_hand_gives_a_trace_for_each_step(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    greedy(model, IDS)
    assert recorder.trees() == ["forward", "forward", "forward"]


def test_loop_by_hand_inside_a_block_gives_its_phases(bare_recorder: Recorder) -> None:
    model = tiny.causal_lm()
    plain = greedy(model, IDS).tolist()
    bare_recorder.instrument()
    with inferspan.inference("answer", model=model):
        assert greedy(model, IDS).tolist() == plain
    assert bare_recorder.trees() == [("answer", "forward", "forward", "forward")]
    assert bare_recorder.attributes("answer")["inferspan.sequence.length"] == 6


def test_loop_by_hand_inside_a_phase_is_that_phase(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    with inferspan.inference("answer", model=model) as answer, answer.phase("decode by hand"):
        greedy(model, IDS)
    assert recorder.trees() == [("answer", "decode by hand")]


def test_block_that_says_its_tokens_wins_over_what_hooks_count_later(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:
        block.set_tokens(input=100, output=200)
        tiny.causal_lm().generate(IDS, max_new_tokens=2)
    attributes = recorder.attributes("answer")
    assert attributes["gen_ai.usage.input_tokens"] == 100
    assert attributes["gen_ai.usage.output_tokens"] == 200


def test_time_of_the_program_before_generate_in_its_phase_is_not_ours(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_ns = 0
    for name, module in list(sys.modules.items()):
        if name.startswith("inferspan.") and hasattr(module, "perf_counter_ns"):
            monkeypatch.setattr(module, "perf_counter_ns", lambda: perf_counter_ns() + passed_ns)
    model = tiny.causal_lm()
    model.generate(IDS, max_new_tokens=2)
    inferspan.force_flush()
    reporter: Any = state.pipeline
    before = reporter.observed()[semconv.OVERHEAD_HOOKS]
    with inferspan.inference("answer", model=model) as answer, answer.phase("think"):
        passed_ns += 3600 * 10**9  # an hour
        model.generate(IDS, max_new_tokens=2)
    inferspan.force_flush()

    assert 0 < reporter.observed()[semconv.OVERHEAD_HOOKS] - before < 3600
