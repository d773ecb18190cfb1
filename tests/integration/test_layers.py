"""Layers on request: one line for each, whatever the number of its calls, and nothing where none are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import pipeline

import inferspan
from inferspan import InferspanWarning, faults, semconv
from inferspan.integrations.torch import layers
from inferspan.probes import accelerator
from support import tiny
from support.fakedevice import FakeEvent, FakeGpu, install, obeyed
from support.recorder import Recorder

IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
LLAMA = ("layer model.layers.0", "layer model.layers.1")
BERT = ("layer bert.encoder.layer.0", "layer bert.encoder.layer.1")
ATTENTION_S, MLP_S = 0.003, 0.001


@pytest.fixture
def transformer(bare_recorder: Recorder) -> Recorder:
    bare_recorder.instrument(layers="transformer")
    return bare_recorder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    faults.forget()
    gpu = FakeGpu()
    install(gpu, monkeypatch, as_host=True)
    yield gpu
    assert obeyed(gpu)


def working(model: Any, gpu: FakeGpu, *, finishes: bool = True) -> Any:
    """The model, whose attention and MLP keep the GPU busy, and whose steps wait for it."""

    def work(seconds: float) -> Callable[..., None]:
        return lambda *_: gpu.work(seconds)

    def finish(*_: Any) -> None:
        if finishes:
            gpu.finish()

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(work(ATTENTION_S))
        layer.mlp.register_forward_hook(work(MLP_S))
    model.register_forward_hook(finish)
    return model


def generate(model: Any, steps: int) -> Any:
    return model.generate(IDS, max_new_tokens=steps, do_sample=False, eos_token_id=None).tolist()


def calls_of(model: nn.Module) -> list[Any]:
    """What each module's class itself defines."""
    return [vars(type(module)).get("__call__") for module in model.modules()]


def told(recorder: Recorder, name: str) -> dict[str, Any]:
    """Attributes of the one span ``name``: times on the host as ``...``, those on the device rounded."""
    found = recorder.attributes(name)
    host = {semconv.LAYER_ATTENTION_TIME, semconv.LAYER_MLP_TIME, semconv.PHASE_TIME}
    return {
        key: ... if key in host else round(value, 6) if isinstance(value, float) else value
        for key, value in found.items()
    }


# -- which -----------------------------------------------------------------------------------------------------------


SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
PER_HEAD = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64}
PARTS = ["attention", "mlp"]

FOUND = [
    ("BertModel", SHAPE, ["encoder.layer.0", "encoder.layer.1"], ["attention", "mlp", "mlp"]),
    ("GPT2Model", PER_HEAD, ["h.0", "h.1"], PARTS),
    ("GPTNeoXModel", SHAPE, ["layers.0", "layers.1"], PARTS),
    ("LlamaModel", SHAPE, ["layers.0", "layers.1"], PARTS),
    ("Qwen3Model", {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}, ["layers.0", "layers.1"], PARTS),
    (
        "T5Model",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64},
        ["encoder.block.0", "decoder.block.0"],
        PARTS,
    ),
    ("BartModel", BART, ["encoder.layers.0", "decoder.layers.0"], ["attention", "mlp", "mlp"]),
    ("MixtralModel", {**SHAPE, "num_key_value_heads": 2, "num_local_experts": 2}, ["layers.0", "layers.1"], PARTS),
    (
        "SwinModel",
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "patch_size": 4, "window_size": 2},
        ["encoder.layers.0.blocks.0", "encoder.layers.1.blocks.0"],
        None,
    ),
    ("MambaModel", {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 64}, ["layers.0", "layers.1"], []),
    (
        "JambaModel",
        {**SHAPE, "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
        ["layers.0", "layers.1"],
        [],  # of its first layer, which is a Mamba
    ),
]


@pytest.mark.parametrize(("kind", "shape", "names", "parts"), [pytest.param(*row, id=row[0]) for row in FOUND])
def test_blocks_are_found_by_structure(kind: str, shape: Any, names: list[str], parts: list[str] | None) -> None:
    cls = getattr(transformers, kind)
    with torch.device("meta"):
        found = list(layers._find(cls(cls.config_class(**shape)), "transformer"))
    assert [name for name, _ in found] == names
    if parts is not None:
        assert [part for part, _ in layers._parts(found[0][1])] == parts


def test_blocks_of_torch_itself_are_found() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False)
    assert [name for name, _ in layers._find(model, "transformer")] == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        pytest.param("transformer", LLAMA, id="transformer"),
        pytest.param(1, ("layer model", "layer lm_head"), id="depth"),
        pytest.param(
            "2",
            ("layer model.embed_tokens", "layer model.rotary_emb", *LLAMA, "layer model.norm"),
            id="lists-do-not-count",
        ),
        pytest.param("*.mlp", ("layer model.layers.0.mlp", "layer model.layers.1.mlp"), id="pattern"),
        pytest.param("lm_head,model.layers.0", ("layer model.layers.0", "layer lm_head"), id="patterns"),
        pytest.param("", (), id="none"),
    ],
)
def test_setting_chooses_layers(wanted: Any, names: tuple[str, ...], bare_recorder: Recorder) -> None:
    model = tiny.causal_lm()
    before = calls_of(model)
    with torch.no_grad():
        plain = model(IDS).logits.tolist()
        bare_recorder.instrument(layers=wanted)
        assert model(IDS).logits.tolist() == plain
    trees = bare_recorder.trees()
    assert trees == [("forward", *names)] if names else trees == ["forward"]
    inferspan.uninstrument()
    assert calls_of(model) == before


def test_layers_of_one_model_are_chosen_by_hand(recorder: Recorder) -> None:
    model, other = tiny.classifier(), tiny.classifier()
    handle = inferspan.instrument_module(model, layers="transformer")
    model(IDS)
    other(IDS)
    handle.remove()
    model(IDS)
    assert recorder.trees() == [("forward", *BERT), "forward", "forward"]


def test_more_layers_than_allowed_are_left_out_with_a_warning(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer", layers_max=1)
    with pytest.warns(InferspanWarning, match=r"more than 1 layers 'transformer'.*INFERSPAN_LAYERS_MAX"):
        tiny.classifier()(IDS)
    assert bare_recorder.trees() == [("forward", BERT[0])]


def test_model_without_such_layers_is_warned_of(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="decoder.*")
    with pytest.warns(InferspanWarning, match=r"no layers 'decoder\.\*' were found in BertForSequenceClassification"):
        tiny.classifier()(IDS)
    assert bare_recorder.trees() == ["forward"]


# -- what is told -----------------------------------------------------------------------------------------------------


def test_model_called_directly_has_a_line_for_each_layer(transformer: Recorder) -> None:
    tiny.classifier()(IDS)
    assert transformer.trees() == [("forward", *BERT)]
    assert told(transformer, BERT[1]) == {
        "inferspan.layer.name": "bert.encoder.layer.1",
        "inferspan.layer.attention.time": ...,
        "inferspan.layer.mlp.time": ...,
    }


def test_generate_has_one_line_for_all_calls_of_a_layer(transformer: Recorder) -> None:
    generate(tiny.causal_lm(), 40)
    assert transformer.trees() == [("text_completion LlamaForCausalLM", ("forward", "prefill", *LLAMA, "decode"))]
    assert told(transformer, LLAMA[0]) == {
        "inferspan.layer.name": "model.layers.0",
        "inferspan.phase.calls": 40,
        "inferspan.phase.time": ...,
        "inferspan.layer.attention.time": ...,
        "inferspan.layer.mlp.time": ...,
    }


def test_times_of_parts_are_within_those_of_their_layer(transformer: Recorder) -> None:
    generate(tiny.causal_lm(), 4)
    span = transformer.span(LLAMA[0])
    found = span.attributes
    parts = found["inferspan.layer.attention.time"] + found["inferspan.layer.mlp.time"]
    assert 0 < parts < found["inferspan.phase.time"] < (span.end_time - span.start_time) * 1e-9


def test_points_of_parts_add_up_to_their_layer(transformer: Recorder) -> None:
    generate(tiny.causal_lm(), 4)
    whole = transformer.span(LLAMA[0]).attributes["inferspan.phase.time"]
    assert transformer.counts("inferspan.layer.calls", "gen_ai.request.model", "inferspan.layer.name") == {
        ("LlamaForCausalLM", "model.layers.0"): 4,
        ("LlamaForCausalLM", "model.layers.1"): 4,
    }
    times = transformer.counts("inferspan.layer.time", "inferspan.layer.name", "inferspan.layer.part")
    parts = {part: value for (name, part), value in times.items() if name == "model.layers.0"}
    assert parts.keys() == {"attention", "mlp", "rest"}
    assert sum(parts.values()) == pytest.approx(whole)
    assert transformer.points("inferspan.layer.gpu.time") == []


def test_layers_of_several_forwards_are_summed_under_the_root(transformer: Recorder) -> None:
    pipe = pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
    pipe(["hello world"] * 3)
    ((_, *children),) = transformer.trees()
    assert sorted(children) == sorted(["tokenize", "forward", "detokenize"] * 3 + list(BERT))
    assert told(transformer, BERT[0])["inferspan.phase.calls"] == 3


def test_layers_of_two_models_in_one_inference_stay_apart(transformer: Recorder) -> None:
    with inferspan.inference("both"):
        tiny.classifier()(IDS)
        tiny.classifier()(IDS)
    assert transformer.trees() == [("both", "forward", *BERT, "forward", *BERT)]


def test_layer_in_which_the_model_fails_says_so(transformer: Recorder) -> None:
    model = tiny.causal_lm()
    model.model.layers[1].mlp.register_forward_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        model(IDS)
    assert transformer.trees() == [("forward", *LLAMA)]
    failed = [transformer.attributes(name).get("error.type") for name in LLAMA]
    assert failed == [None, "MemoryError"]


def test_one_inference_of_so_many_has_layers(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer", layers_every=3)
    model, other = tiny.classifier(), tiny.classifier()
    for _ in range(4):
        model(IDS)
    other(IDS)
    assert bare_recorder.trees() == [("forward", *BERT), "forward", "forward", ("forward", *BERT), ("forward", *BERT)]


def test_inference_of_several_forwards_counts_once(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer", layers_every=2)
    pipe = pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
    for _ in range(3):
        pipe(["hello world"] * 3)
    assert [BERT[0] in tree for tree in bare_recorder.trees()] == [True, False, True]
    inferspan.force_flush()
    assert bare_recorder.counts("inferspan.layer.calls", "inferspan.layer.name")["bert.encoder.layer.0"] == 6


def test_trace_that_is_not_recorded_has_none() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    recorder = Recorder(sampler=ALWAYS_OFF)
    recorder.instrument(layers="transformer")
    tiny.classifier()(IDS)
    recorder.spans()
    assert recorder.points("inferspan.layer.calls") == []
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"forward": 1}
    recorder.close()


@pytest.mark.parametrize("fullgraph", [True, False])
def test_model_compiled_has_the_same_graphs_and_no_layers(fullgraph: bool, bare_recorder: Recorder) -> None:
    import torch._dynamo.utils

    def run() -> tuple[Any, dict[str, Any]]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = tiny.classifier(return_dict=False)
        model(IDS)  # finds the layers
        compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
        with torch.no_grad():
            result = [compiled(IDS)[0].tolist(), compiled(IDS[:1])[0].tolist()]
        return result, {name: dict(counted) for name, counted in torch._dynamo.utils.counters.items()}

    plain = run()
    bare_recorder.instrument(layers="transformer")
    assert run() == plain
    assert bare_recorder.trees() == [("forward", *BERT), "forward", "forward"]


# -- on a device -------------------------------------------------------------------------------------------------------


def test_gpu_time_of_each_layer_and_part(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer")
    generate(working(tiny.causal_lm(), gpu), 5)
    assert told(bare_recorder, LLAMA[0]) == {
        "inferspan.layer.name": "model.layers.0",
        "inferspan.phase.calls": 5,
        "inferspan.phase.time": ...,
        "inferspan.gpu.time": round(5 * (ATTENTION_S + MLP_S), 6),
        "inferspan.layer.attention.time": ...,
        "inferspan.layer.attention.gpu_time": 5 * ATTENTION_S,
        "inferspan.layer.mlp.time": ...,
        "inferspan.layer.mlp.gpu_time": 5 * MLP_S,
    }
    times = bare_recorder.counts("inferspan.layer.gpu.time", "inferspan.layer.name", "inferspan.layer.part")
    assert {key: round(value, 6) for key, value in times.items()} == {
        (name, part): value
        for name in ("model.layers.0", "model.layers.1")
        for part, value in (("attention", 5 * ATTENTION_S), ("mlp", 5 * MLP_S), ("rest", 0.0))
    }


def test_memory_of_a_layer_is_that_of_its_first_call(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer")
    model = tiny.causal_lm()
    gpu.allocate(1000)

    def allocate(*_: Any) -> None:
        gpu.allocate(300)
        gpu.free(100)

    model.model.layers[0].register_forward_hook(allocate)
    generate(model, 3)
    found = told(bare_recorder, LLAMA[0])
    assert (found["inferspan.layer.memory"], found["inferspan.memory.allocated"]) == (200, 300)
    assert told(bare_recorder, LLAMA[1])["inferspan.layer.memory"] == 0


def test_a_long_generation_needs_few_events(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer")
    model = working(tiny.causal_lm(num_hidden_layers=1), gpu)
    made = FakeEvent.made
    generate(model, 200)
    found = told(bare_recorder, LLAMA[0])
    assert (found["inferspan.phase.calls"], found["inferspan.gpu.time"]) == (200, round(200 * (ATTENTION_S + MLP_S), 6))
    assert FakeEvent.made - made < 300, "600 stopwatches, twice as many events"


def test_device_that_lags_behind_is_not_waited_for(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer")
    model = working(tiny.causal_lm(), gpu, finishes=False)
    with torch.no_grad():
        model(IDS)
    assert bare_recorder.exporter.get_finished_spans() == ()
    gpu.finish()
    assert told(bare_recorder, LLAMA[1])["inferspan.gpu.time"] == ATTENTION_S + MLP_S


def test_no_more_events_than_allowed(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer", gpu_timers_max=4)
    model = working(tiny.causal_lm(), gpu, finishes=False)
    with torch.no_grad():
        model(IDS)
    gpu.finish()
    names = ("forward", *LLAMA)
    assert [told(bare_recorder, name).get("inferspan.gpu.time") for name in names] == [0.008, 0.004, None]
    device = accelerator.of("cuda:0")
    assert device is not None
    assert len(device._pending) <= 4


def test_layers_are_not_timed_where_time_is_not_asked_for(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer", measure=())
    generate(working(tiny.causal_lm(), gpu), 2)
    assert told(bare_recorder, LLAMA[0]) == {
        "inferspan.layer.name": "model.layers.0",
        "inferspan.phase.calls": 2,
        "inferspan.phase.time": ...,
        "inferspan.layer.attention.time": ...,
        "inferspan.layer.mlp.time": ...,
    }


def test_capture_of_a_graph_is_not_disturbed(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer")
    model = tiny.classifier()
    gpu.capturing = True
    model(IDS)
    gpu.capturing = False
    assert "inferspan.gpu.time" not in told(bare_recorder, BERT[0])
