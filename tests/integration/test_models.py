"""Models called directly: one ``forward`` span for each inference, none for training, and nothing for a compiler to
see."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from opentelemetry import trace

import inferspan
from support import tiny
from support.recorder import MODEL_FACTS, Recorder

V4 = transformers.__version__.startswith("4.")
IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])

FORWARD = {
    "gen_ai.operation.name": "forward",
    "gen_ai.provider.name": "huggingface",
    "gen_ai.request.model": "BertForSequenceClassification",
    "gen_ai.usage.input_tokens": 8,
    "inferspan.batch.size": 2,
    "inferspan.cold": False,
    "inferspan.device": "cpu",
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
    "inferspan.sequence.length": 4,
}


def warm(recorder: Recorder) -> Any:
    """A model past its first inference, which is cold."""
    model = tiny.classifier()
    model(IDS)
    recorder.clear()
    return model


def logits(model: Any, ids: torch.Tensor) -> list[Any]:
    with torch.no_grad():
        return model(ids)[0].tolist()


# -- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        pytest.param(lambda m: m(IDS), {}, id="positional"),
        pytest.param(lambda m: m(input_ids=IDS), {}, id="by-name"),
        pytest.param(
            lambda m: m(input_ids=IDS, attention_mask=MASK),
            {"gen_ai.usage.input_tokens": 7, "inferspan.padding.ratio": 0.125},
            id="mask",
        ),
        pytest.param(
            lambda m: m(inputs_embeds=m.get_input_embeddings()(IDS)),
            {"inferspan.usage.input_tokens.exact": False},
            id="embeddings",
        ),
        pytest.param(lambda m: m(IDS[:1]), {"gen_ai.usage.input_tokens": 4, "inferspan.batch.size": 1}, id="one-row"),
    ],
)
def test_model_called_gives_one_span_and_the_same_result(
    call: Callable[[Any], Any], changes: dict[str, Any], bare_recorder: Recorder
) -> None:
    model = tiny.classifier()
    plain = call(model).logits.tolist()
    bare_recorder.instrument()
    assert call(model).logits.tolist() == plain
    bare_recorder.clear()
    result = call(model)
    assert type(result).__name__ == "SequenceClassifierOutput"
    assert result.logits.requires_grad
    assert bare_recorder.trees() == ["forward"]
    expected = {name: value for name, value in {**FORWARD, **changes}.items() if value is not None}
    assert bare_recorder.attributes("forward") == expected


IN, RATIO, EXACT = "gen_ai.usage.input_tokens", "inferspan.padding.ratio", "inferspan.usage.input_tokens.exact"
BATCH, LENGTH = "inferspan.batch.size", "inferspan.sequence.length"
PADDED = torch.tensor([[10, 20, 30, 0], [50, 60, 70, 80]])
RIGHT = (PADDED != 0).long()
SEVEN_OF_EIGHT = {IN: 7, RATIO: 0.125, BATCH: 2, LENGTH: 4}
EIGHT = {IN: 8, BATCH: 2, LENGTH: 4}


def clip() -> Any:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**text, "image_size": 16, "patch_size": 8}
    text = {**text, "vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 99}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return tiny.seeded(lambda: transformers.CLIPModel(config))


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    return tiny.seeded(lambda: transformers.ViTForImageClassification(config))


def causal(mask: torch.Tensor) -> torch.Tensor:
    """Of four dimensions: what each query sees."""
    return torch.ones(4, 4).tril().bool() & mask.bool()[:, None, None, :]


def decode_step(model: Any) -> Any:
    past = model(input_ids=PADDED, attention_mask=MASK, use_cache=True).past_key_values
    return model(PADDED[:, :1], torch.cat([MASK, torch.ones(2, 1).long()], dim=1), past_key_values=past)


@pytest.mark.parametrize(
    ("make", "call", "expected"),
    [
        pytest.param(
            lambda: tiny.classifier(pad_token_id=None),
            lambda m: m(PADDED, RIGHT),
            SEVEN_OF_EIGHT,
            id="bert-positional-mask",
        ),
        pytest.param(tiny.classifier, lambda m: m(PADDED), SEVEN_OF_EIGHT, id="bert-padding-id-alone"),
        pytest.param(tiny.classifier, lambda m: m(PADDED, None), SEVEN_OF_EIGHT, id="bert-mask-of-none"),
        pytest.param(
            tiny.classifier, lambda m: m(PADDED, attention_mask=RIGHT.bool()), SEVEN_OF_EIGHT, id="bert-boolean-mask"
        ),
        pytest.param(
            tiny.classifier,
            lambda m: m(PADDED, RIGHT.bool()[:, None, None, :].expand(-1, 1, 4, -1)),
            SEVEN_OF_EIGHT,
            id="bert-mask-of-four-dimensions",
            marks=pytest.mark.skipif(V4, reason="4.57 takes none there"),
        ),
        pytest.param(
            tiny.classifier,
            lambda m: m(attention_mask=RIGHT, inputs_embeds=m.get_input_embeddings()(PADDED)),
            SEVEN_OF_EIGHT,
            id="bert-masked-embeddings",
        ),
        pytest.param(tiny.gpt2, lambda m: m(PADDED), SEVEN_OF_EIGHT, id="gpt2-padding-id-alone"),
        pytest.param(lambda: tiny.gpt2(pad_token_id=2), lambda m: m(PADDED), EIGHT, id="gpt2-padding-id-that-ends-too"),
        pytest.param(lambda: tiny.gpt2(pad_token_id=None), lambda m: m(PADDED), EIGHT, id="gpt2-no-padding-id"),
        pytest.param(
            lambda: tiny.gpt2(pad_token_id=None),
            lambda m: m(PADDED, None, *([None] if V4 else []), RIGHT),
            SEVEN_OF_EIGHT,
            id="gpt2-mask-behind-the-cache",
        ),
        pytest.param(tiny.causal_lm, lambda m: m(PADDED, MASK), SEVEN_OF_EIGHT, id="llama-positional-mask"),
        pytest.param(
            tiny.causal_lm, lambda m: m(PADDED, causal(RIGHT)), SEVEN_OF_EIGHT, id="llama-mask-of-four-dimensions"
        ),
        pytest.param(
            tiny.causal_lm,
            lambda m: m(PADDED, torch.zeros(2, 1, 4, 4).masked_fill(~causal(RIGHT), -1e9)),
            SEVEN_OF_EIGHT,
            id="llama-bias",
        ),
        pytest.param(
            tiny.causal_lm,
            lambda m: m(torch.tensor([[5, 6, 7, 5, 6]]), position_ids=torch.tensor([[0, 1, 2, 0, 1]])),
            {IN: 5, BATCH: 2, LENGTH: 3},
            id="llama-packed",
        ),
        pytest.param(tiny.seq2seq_lm, lambda m: m(PADDED, RIGHT, PADDED[:, :2]), SEVEN_OF_EIGHT, id="t5-positional"),
        pytest.param(
            tiny.seq2seq_lm,
            lambda m: m(decoder_input_ids=PADDED[:, :2], attention_mask=RIGHT, input_ids=PADDED),
            SEVEN_OF_EIGHT,
            id="t5-by-name",
        ),
        pytest.param(
            tiny.whisper,
            lambda m: m(torch.zeros(2, 16, 100), decoder_input_ids=PADDED[:, :2]),
            {BATCH: 2},
            id="whisper-positional",
        ),
        pytest.param(vit, lambda m: m(torch.zeros(3, 3, 16, 16)), {BATCH: 3}, id="vit-positional"),
        pytest.param(clip, lambda m: m(PADDED, torch.zeros(3, 3, 16, 16), RIGHT), SEVEN_OF_EIGHT, id="clip-positional"),
    ],
)
def test_model_called_in_any_way_counts_the_tokens_it_reads(
    make: Callable[[], Any], call: Callable[[Any], Any], expected: dict[str, Any], recorder: Recorder
) -> None:
    model = make()
    with torch.no_grad():
        call(model)
    found = recorder.attributes("forward")
    assert {name: found[name] for name in (IN, RATIO, EXACT, BATCH, LENGTH) if name in found} == expected


def test_model_called_for_a_step_counts_what_is_not_in_its_cache(recorder: Recorder) -> None:
    with torch.no_grad():
        decode_step(tiny.causal_lm())
    assert [span.attributes[IN] for span in recorder.spans()] == [7, 2]
    assert recorder.spans()[1].attributes[LENGTH] == 1


def test_model_with_adapters_is_counted_by_the_names_inside(recorder: Recorder) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny.classifier(pad_token_id=None), peft.LoraConfig(target_modules=["query"])).eval()
    recorder.clear()
    with torch.no_grad():
        model(PADDED, MASK)
    assert recorder.attributes("forward")[IN] == 7
    assert recorder.attributes("forward")[RATIO] == 0.125


def test_model_compiled_is_counted_by_its_names(recorder: Recorder) -> None:
    model = torch.compile(tiny.classifier(pad_token_id=None), backend="eager")
    with torch.no_grad():
        model(PADDED, RIGHT)
    assert recorder.attributes("forward")[IN] == 7


def test_model_first_called_tells_itself(recorder: Recorder) -> None:
    model = tiny.classifier()
    model(IDS)
    found = recorder.attributes("forward")
    assert {name: found.pop(name) for name in MODEL_FACTS} == {
        "inferspan.model.class": "BertForSequenceClassification",
        "inferspan.model.type": "bert",
        "inferspan.model.parameters": model.num_parameters(),
        "inferspan.model.size": model.get_memory_footprint(),
        "inferspan.model.dtype": "float32",
        "inferspan.model.attention": "sdpa",
    }
    assert found == {**FORWARD, "inferspan.cold": True}


def test_model_called_gives_the_points_of_its_facts(recorder: Recorder) -> None:
    tiny.classifier()(input_ids=IDS, attention_mask=MASK)
    recorder.spans()
    assert recorder.counts("gen_ai.client.operation.duration", "gen_ai.operation.name") == {"forward": 1}
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"forward": 1}
    assert [(point.count, point.sum) for point in recorder.points("inferspan.batch.padding")] == [(1, 0.125)]


def test_model_that_raises_records_the_error(recorder: Recorder) -> None:
    model = warm(recorder)
    with pytest.raises(IndexError):
        model(torch.tensor([[100_000]]))
    assert recorder.trees() == ["forward"]
    span = recorder.span("forward")
    assert span.attributes["error.type"] == "IndexError"
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, None)


def test_model_with_a_model_inside_gives_one_span(recorder: Recorder) -> None:
    tiny.seq2seq_lm()(input_ids=IDS, decoder_input_ids=IDS)
    assert recorder.trees() == ["forward"]


def test_model_hooks_of_the_program_run_inside_the_span(recorder: Recorder) -> None:
    model = warm(recorder)
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(trace.get_current_span().get_span_context().span_id))
    model(IDS)
    assert seen == [recorder.span("forward").context.span_id]


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_loop_gives_no_spans(recorder: Recorder) -> None:
    model = tiny.classifier().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert recorder.trees() == []


def test_training_with_checkpointed_gradients_gives_no_spans(recorder: Recorder) -> None:
    model = tiny.causal_lm().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model(IDS, labels=IDS).loss.backward()
    assert recorder.trees() == []


def test_training_with_the_trainer_gives_spans_of_its_evaluation_only(recorder: Recorder, tmp_path: Any) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    rows = [{"input_ids": row, "labels": torch.tensor(0)} for row in IDS]
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = transformers.Trainer(tiny.classifier(), settings, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert recorder.trees() == []
    trainer.evaluate()
    assert recorder.trees() == ["forward"]


@pytest.mark.parametrize(
    ("training", "context", "spans"),
    [
        pytest.param(True, torch.enable_grad, [], id="train-grad"),
        pytest.param(True, torch.no_grad, ["forward"], id="train-no-grad"),
        pytest.param(True, torch.inference_mode, ["forward"], id="train-inference-mode"),
        pytest.param(False, torch.enable_grad, ["forward"], id="eval-grad"),
        pytest.param(False, torch.no_grad, ["forward"], id="eval-no-grad"),
        pytest.param(False, torch.inference_mode, ["forward"], id="eval-inference-mode"),
    ],
)
def test_model_called_is_an_inference_unless_it_trains(
    training: bool, context: Callable[[], Any], spans: list[str], recorder: Recorder
) -> None:
    model = tiny.classifier().train(training)
    with context():
        model(IDS)
    assert recorder.trees() == spans


# -- compiled, exported, traced ---------------------------------------------------------------------------------------


@pytest.fixture
def dynamo() -> Iterator[Any]:
    """The compiler, with nothing compiled yet."""
    import torch._dynamo
    import torch._dynamo.utils

    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


def compiling(dynamo: Any, call: Callable[[], Any]) -> Any:
    """What the call gives, and what the compiler had to do for it."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    result = call()
    counters = {name: dict(dynamo.utils.counters[name]) for name in ("stats", "frames", "graph_break", "recompiles")}
    return result, counters


@pytest.mark.parametrize(
    ("compiled", "spans"),
    [
        pytest.param(lambda m: torch.compile(m, backend="eager", fullgraph=True), ["forward"], id="model"),
        pytest.param(lambda m: m.compile(backend="eager", fullgraph=True) or m, ["forward"], id="in-place"),
        pytest.param(
            lambda m: torch.compile(lambda *a, **k: m(*a, **k), backend="eager", fullgraph=True),
            ["forward"],
            id="function",
        ),
    ],
)
def test_model_compiled_gives_the_same_graphs_and_one_span(
    compiled: Callable[[Any], Any], spans: list[str], dynamo: Any, bare_recorder: Recorder
) -> None:
    def run() -> list[Any]:
        function = compiled(tiny.classifier(return_dict=False))
        return [logits(function, IDS), logits(function, IDS)]

    plain = compiling(dynamo, run)
    bare_recorder.instrument()
    assert compiling(dynamo, run) == plain
    assert bare_recorder.trees() == spans * 2


def test_model_compiled_before_instrumenting_is_not_compiled_again(dynamo: Any, bare_recorder: Recorder) -> None:
    model = torch.compile(tiny.classifier(return_dict=False), backend="eager", fullgraph=True)
    plain, _ = compiling(dynamo, lambda: logits(model, IDS))
    dynamo.utils.counters.clear()
    bare_recorder.instrument()
    assert logits(model, IDS) == plain
    assert dynamo.utils.counters["stats"] == {}
    assert bare_recorder.trees() == ["forward"]
    assert bare_recorder.attributes("forward")["gen_ai.request.model"] == "BertForSequenceClassification"
    inferspan.uninstrument()
    assert logits(model, IDS) == plain
    assert dynamo.utils.counters["stats"] == {}


def test_generate_compiled_gives_the_same_graphs_and_one_trace(dynamo: Any, bare_recorder: Recorder) -> None:
    def run() -> list[list[int]]:
        config = transformers.CompileConfig(backend="eager", mode=None, fullgraph=False)
        config._compile_all_devices = True
        model = tiny.causal_lm(num_hidden_layers=1)
        result = model.generate(
            IDS, max_new_tokens=4, cache_implementation="static", compile_config=config, disable_compile=False
        )
        return result.tolist()

    plain = compiling(dynamo, run)
    assert plain[1]["stats"]["unique_graphs"] >= 1
    bare_recorder.instrument()
    assert compiling(dynamo, run) == plain
    assert bare_recorder.trees() == [("text_completion LlamaForCausalLM", ("forward", "prefill", "decode"))]


def attempt(call: Callable[[], Any]) -> Any:
    """What the call gives, or the kind of error, where a version cannot do it with us or without."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001
        return type(error)


def test_model_compiled_inside_a_compiled_function_gives_the_same_graphs(dynamo: Any, bare_recorder: Recorder) -> None:
    def run() -> list[Any]:
        model = torch.compile(tiny.classifier(return_dict=False), backend="eager")
        return logits(torch.compile(lambda ids: model(ids), backend="eager", fullgraph=True), IDS)

    plain = compiling(dynamo, run)
    bare_recorder.instrument()
    assert compiling(dynamo, run) == plain
    assert bare_recorder.trees() == ["forward"]


@pytest.mark.parametrize("strict", [pytest.param(True, id="strict"), pytest.param(False, id="not-strict")])
def test_model_exported_is_the_same_program(strict: bool, dynamo: Any, bare_recorder: Recorder) -> None:
    def run() -> Any:
        program = torch.export.export(tiny.classifier(), (IDS,), {"return_dict": False}, strict=strict)
        modules = [[name for name, _ in node.meta.get("nn_module_stack", {}).values()] for node in program.graph.nodes]
        return program.graph_module.code, modules, program.module()(IDS, return_dict=False)[0].tolist()

    plain = attempt(run)
    assert isinstance(plain, tuple)
    bare_recorder.instrument()
    assert attempt(run) == plain
    assert bare_recorder.trees() == ["forward"]  # of the program itself


def test_model_traced_by_jit_is_the_same_program(bare_recorder: Recorder) -> None:
    def run() -> tuple[str, list[Any]]:
        model = tiny.classifier(return_dict=False)
        traced = torch.jit.trace(model, (IDS,))
        return str(traced.code), traced(IDS)[0].tolist()

    plain = attempt(run)
    assert isinstance(plain, tuple)
    bare_recorder.instrument()
    assert attempt(run) == plain
    # tracing calls the model to compare, which is an inference like any other
    assert set(bare_recorder.trees()) <= {"forward"}


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
    ],
)
def test_model_copied_is_a_model_of_its_own(copied: Callable[[Any], Any], recorder: Recorder) -> None:
    model = tiny.classifier()
    plain = logits(model, IDS)
    other = copied(model)
    with torch.no_grad():
        other.classifier.weight.zero_()
        other.classifier.bias.zero_()
    assert logits(other, IDS) == [[0.0, 0.0], [0.0, 0.0]]
    assert logits(model, IDS) == plain
    assert [span.attributes["inferspan.cold"] for span in recorder.spans()] == [True, True, False]


def test_model_pickled_while_instrumented_loads_without(recorder: Recorder) -> None:
    model = tiny.classifier()
    plain, data = logits(model, IDS), pickle.dumps(model)
    inferspan.uninstrument()
    assert logits(pickle.loads(data), IDS) == plain


def test_model_called_functionally_gives_one_span(recorder: Recorder) -> None:
    model = warm(recorder)
    torch.func.functional_call(model, dict(model.named_parameters()), (IDS,))
    assert recorder.trees() == ["forward"]


def test_model_put_back_calls_as_before(bare_recorder: Recorder) -> None:
    before = dict(vars(transformers.PreTrainedModel))
    bare_recorder.instrument()
    assert "__call__" in vars(transformers.PreTrainedModel)
    inferspan.uninstrument()
    assert dict(vars(transformers.PreTrainedModel)) == before


def test_models_compiled_have_their_own_limit_of_recompilations(bare_recorder: Recorder) -> None:
    """Dynamo's limit belongs to a frame: if ours were the first that it sees, all models would share it."""
    made = torch._dynamo.config.cache_size_limit + 2

    def forward(self: Any, inputs_embeds: torch.Tensor) -> torch.Tensor:
        return inputs_embeds * 2

    def compiled_graphs() -> int:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        for number in range(made):
            own = types.FunctionType(forward.__code__.replace(co_firstlineno=number + 1), globals(), "forward")
            cls = type(f"Model{number}", (transformers.PreTrainedModel,), {"forward": own})
            model = cls(transformers.PretrainedConfig()).eval()
            model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
            with torch.no_grad():
                torch.compile(model, backend="eager")(IDS.float())
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    assert compiled_graphs() == made
    bare_recorder.instrument()
    assert compiled_graphs() == made
