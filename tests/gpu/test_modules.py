"""Plain modules and layers on a real GPU: times beside torch's own events, and nothing in the way of graphs.

Skipped without CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import pytest

import inferspan
from inferspan import semconv
from support.recorder import Recorder

Note = Callable[[str, str], None]
WIDTH, LAYERS = 2048, 8


@pytest.fixture(scope="module")
def llama(cuda: Any) -> Any:
    """A Llama with random weights whose layers keep a GPU busy."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=8,
        eos_token_id=None,
    )
    cuda.manual_seed(0)
    with cuda.device("cuda:0"):
        return transformers.LlamaForCausalLM(config).to("cuda:0", cuda.bfloat16).eval()


@pytest.fixture
def network(cuda: Any) -> Any:
    """A plain network, not yet put in eval()."""
    nn = cuda.nn
    return nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(4096, 4096), nn.ReLU()))).cuda()


def ids(cuda: Any, length: int) -> Any:
    return cuda.randint(2, 1000, (2, length), device="cuda:0")


def layers_of(recorder: Recorder) -> list[dict[str, Any]]:
    inferspan.force_flush()
    return [dict(span.attributes or {}) for span in recorder.spans() if span.name.startswith("layer ")]


def test_plain_module_has_its_time_on_the_gpu(cuda: Any, network: Any, recorder: Recorder, note: Note) -> None:
    network.eval()
    x = cuda.randn(4096, 4096, device="cuda:0")
    with cuda.no_grad():
        for _ in range(3):
            network(x)
        cuda.cuda.synchronize()
        inferspan.force_flush()
        recorder.clear()
        start, end = (cuda.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        network(x)
        end.record()
        end.synchronize()
    inferspan.force_flush()
    ours, torchs = recorder.span("forward").attributes[semconv.GPU_TIME], start.elapsed_time(end) / 1e3
    note("plain module: our GPU time / that of events around it", f"{ours / torchs:.3f}")
    assert ours == pytest.approx(torchs, rel=0.2)


def test_layers_add_up_to_their_forward(cuda: Any, llama: Any, bare_recorder: Recorder, note: Note) -> None:
    bare_recorder.instrument(layers="transformer")
    with cuda.no_grad():
        for _ in range(3):
            llama(ids(cuda, 2048))
        cuda.cuda.synchronize()
        inferspan.force_flush()
        bare_recorder.clear()
        llama(ids(cuda, 2048))
        cuda.cuda.synchronize()
    layers = layers_of(bare_recorder)
    assert len(layers) == LAYERS
    whole = bare_recorder.span("forward").attributes[semconv.GPU_TIME]
    inside = sum(layer[semconv.GPU_TIME] for layer in layers)
    parts = sum(layer[semconv.LAYER_ATTENTION_GPU_TIME] + layer[semconv.LAYER_MLP_GPU_TIME] for layer in layers)
    note("GPU time of all layers / of the forward", f"{inside / whole:.3f}")
    note("GPU time of attention and MLP / of the layers", f"{parts / inside:.3f}")
    assert 0.5 < parts / inside <= 1
    assert 0.5 < inside / whole <= 1
    assert all(layer[semconv.MEMORY_ALLOCATED] > 0 for layer in layers)


def test_layers_of_a_long_generation_are_all_timed(cuda: Any, llama: Any, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="transformer")
    llama.generate(ids(cuda, 16), max_new_tokens=300, do_sample=False)
    layers = layers_of(bare_recorder)
    assert [layer[semconv.PHASE_CALLS] for layer in layers] == [300] * LAYERS
    assert all(semconv.GPU_TIME in layer for layer in layers)


def test_layers_cost(cuda: Any, llama: Any, bare_recorder: Recorder, note: Note) -> None:
    def step_s() -> float:
        start = perf_counter()
        llama.generate(ids(cuda, 16), max_new_tokens=64, do_sample=False)
        return (perf_counter() - start) / 64

    spent: dict[str, list[float]] = {"off": [], "transformer": []}
    for _ in range(5):
        for mode, found in spent.items():
            bare_recorder.instrument(layers="" if mode == "off" else mode)
            step_s()
            found.append(step_s())
            inferspan.uninstrument()
    off, on = (median(found) for found in spent.values())
    note(
        "a decoding step with layers recorded / without", f"{on / off:.3f} ({(on - off) / LAYERS * 1e6:.0f} µs a layer)"
    )


def test_graph_captured_of_a_watched_module_replays_the_same(cuda: Any, network: Any, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(layers="1")
    network.eval()
    x = cuda.randn(64, 4096, device="cuda:0")
    with cuda.no_grad():
        expected = network(x)
        stream = cuda.cuda.Stream()
        stream.wait_stream(cuda.cuda.current_stream())
        with cuda.cuda.stream(stream):
            for _ in range(3):
                network(x)
        cuda.cuda.current_stream().wait_stream(stream)
        graph = cuda.cuda.CUDAGraph()
        with cuda.cuda.graph(graph):
            result = network(x)
        graph.replay()
        cuda.cuda.synchronize()
    cuda.testing.assert_close(result, expected)


def test_module_made_a_graphed_callable_is_accepted(cuda: Any, network: Any, bare_recorder: Recorder) -> None:
    """torch refuses modules with hooks, and we register none."""
    bare_recorder.instrument(layers="1")
    network.eval()
    x = cuda.randn(64, 4096, device="cuda:0")
    expected = network(x)
    graphed = cuda.cuda.make_graphed_callables(network, (x,))
    cuda.testing.assert_close(graphed(x), expected)
