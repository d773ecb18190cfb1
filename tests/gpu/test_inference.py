"""What inferspan says of an inference on a real GPU, beside what torch's own tools say of the same work.

Skipped without CUDA. ``make gpu-test`` runs all of them, and ends with a table of what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep
from typing import Any

import pytest

import inferspan
from inferspan import semconv
from inferspan.probes import accelerator
from inferspan.probes.flops import peaks
from support.recorder import Recorder

Note = Callable[[str, str], None]

MIB = 1 << 20


@pytest.fixture(scope="module")
def llama(cuda: Any) -> Any:
    """A Llama with random weights, large enough to keep a GPU busy: 0.5 billion parameters."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    cuda.manual_seed(0)
    with cuda.device("cuda:0"):
        return transformers.LlamaForCausalLM(config).to("cuda:0", cuda.bfloat16).eval()


@pytest.fixture
def traced(bare_recorder: Recorder) -> Recorder:
    bare_recorder.instrument()
    return bare_recorder


def ids(cuda: Any, rows: int, length: int) -> Any:
    return cuda.randint(2, 32_000, (rows, length), device="cuda:0")


def warm_up(cuda: Any, call: Callable[[], Any], times: int = 3) -> None:
    for _ in range(times):
        call()
    cuda.cuda.synchronize()


def kernels(cuda: Any, call: Callable[[], Any]) -> tuple[float, list[str]]:
    """Time from the first kernel's start to the last one's end, in seconds, and the names of the host's CUDA calls."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        cuda.cuda.synchronize()
    events = found.events()
    device = [e for e in events if str(e.device_type).endswith("CUDA")]
    begin, end = min(e.time_range.start for e in device), max(e.time_range.end for e in device)
    return (end - begin) * 1e-6, [e.name for e in events if e.name.startswith("cuda")]


# -- time --------------------------------------------------------------------------------------------------------


def test_gpu_time_is_the_profilers(cuda: Any, llama: Any, traced: Recorder, note: Note) -> None:
    batch = ids(cuda, 8, 1024)

    def call() -> None:
        with cuda.no_grad():
            llama(batch)

    warm_up(cuda, call)
    ratios = []
    for _ in range(5):
        traced.clear()
        theirs, _calls = kernels(cuda, call)
        ours = traced.span("forward").attributes[semconv.GPU_TIME]
        ratios.append(ours / theirs)
    note(
        "GPU time of a forward of 8 x 1024 / from the first to the last kernel of the profiler", f"{median(ratios):.4f}"
    )
    assert median(ratios) == pytest.approx(1, abs=0.02)


def test_prefill_and_decode_are_the_generation(cuda: Any, llama: Any, traced: Recorder, note: Note) -> None:
    batch = ids(cuda, 2, 512)
    warm_up(cuda, lambda: llama.generate(batch, max_new_tokens=32, do_sample=False))
    traced.clear()
    start, end = cuda.cuda.Event(enable_timing=True), cuda.cuda.Event(enable_timing=True)
    start.record()
    llama.generate(batch, max_new_tokens=32, do_sample=False)
    end.record()
    cuda.cuda.synchronize()
    parts = {name: traced.span(name).attributes[semconv.GPU_TIME] for name in ("forward", "prefill", "decode")}
    assert parts["prefill"] + parts["decode"] == pytest.approx(parts["forward"], rel=1e-3)
    assert parts["forward"] == pytest.approx(start.elapsed_time(end) / 1e3, rel=0.02)
    note("prefill / decode of 2 x 512 + 32 tokens", f"{parts['prefill'] * 1e3:.1f} ms / {parts['decode'] * 1e3:.1f} ms")


def test_pending_tells_which_of_the_two_is_the_slower(cuda: Any, llama: Any, traced: Recorder) -> None:
    large, small = ids(cuda, 32, 1024), ids(cuda, 1, 8)
    with cuda.no_grad():
        for batch in (large, small):
            warm_up(cuda, lambda batch=batch: llama(batch))
        traced.clear()
        llama(large)
        cuda.cuda.synchronize()
        assert traced.span("forward").attributes[semconv.GPU_PENDING] is True


def test_nothing_waits_for_the_device(cuda: Any, llama: Any, bare_recorder: Recorder, note: Note) -> None:
    batch = ids(cuda, 4, 256)

    def call() -> None:
        with cuda.no_grad():
            llama(batch)

    warm_up(cuda, call)
    _, plain = kernels(cuda, call)
    bare_recorder.instrument()
    warm_up(cuda, call)
    _, ours = kernels(cuda, call)
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMemcpyAsync")
    assert {name: ours.count(name) for name in waits} == {name: plain.count(name) for name in waits}
    events = {"cudaEventRecord", "cudaEventRecordWithFlags", "cudaEventQuery", "cudaEventElapsedTime"}
    assert set(ours) - set(plain) <= events | {"cudaEventCreateWithFlags", "cudaStreamIsCapturing"}
    note("synchronisations added to a forward", "0")


def test_what_it_adds_to_a_forward(cuda: Any, llama: Any, bare_recorder: Recorder, note: Note) -> None:
    batch = ids(cuda, 1, 16)

    def spent() -> float:
        times = []
        with cuda.no_grad():
            for _ in range(200):
                start = perf_counter()
                llama(batch)
                cuda.cuda.synchronize()
                times.append(perf_counter() - start)
        return median(times)

    warm_up(cuda, spent, 1)
    plain = spent()
    bare_recorder.instrument()
    warm_up(cuda, spent, 1)
    ours = spent()
    note(
        "a forward of 1 x 16, off / on (median, with a synchronisation)", f"{plain * 1e6:.0f} µs / {ours * 1e6:.0f} µs"
    )
    assert len(bare_recorder.spans()) == 400


def test_the_price_of_each_reading(cuda: Any, note: Note) -> None:
    device = accelerator.of("cuda:0")
    assert device is not None

    def each(call: Callable[[], Any], times: int = 2000) -> str:
        start = perf_counter()
        for _ in range(times):
            call()
        return f"{(perf_counter() - start) / times * 1e6:.2f} µs"

    event = device.record()
    cuda.cuda.synchronize()
    note("recording an event", each(lambda: device.give_back([device.record()])))
    note("querying an event", each(lambda: device.is_done(event)))
    note("reading the allocator", each(device.memory))
    note("is_current_stream_capturing", each(cuda.cuda.is_current_stream_capturing))


# -- graphs ------------------------------------------------------------------------------------------------------


def test_a_capture_is_not_disturbed(cuda: Any, llama: Any, traced: Recorder) -> None:
    """Finished inferences wait to be read while the program captures in CUDA's strictest mode, many times."""
    weight = cuda.randn(256, 256, device="cuda:0")
    stream = cuda.cuda.Stream()
    for _ in range(50):
        with cuda.no_grad():
            llama(ids(cuda, 1, 64))
        graph = cuda.cuda.CUDAGraph()
        stream.wait_stream(cuda.cuda.current_stream())
        with cuda.cuda.stream(stream):
            weight @ weight  # warm-up, outside of the capture
        cuda.cuda.current_stream().wait_stream(stream)
        with cuda.cuda.graph(graph, capture_error_mode="global"):
            out = weight @ weight
            sleep(0.01)  # our reader would come round now
        graph.replay()
        cuda.cuda.synchronize()
        assert cuda.allclose(out, weight @ weight, rtol=1e-3, atol=1e-2)
    assert all(semconv.GPU_TIME in (span.attributes or {}) for span in traced.spans())


def test_a_model_that_is_captured_itself(cuda: Any, traced: Recorder) -> None:
    from support import tiny

    model = tiny.classifier().to("cuda:0")
    batch = cuda.randint(2, 60, (2, 8), device="cuda:0")
    with cuda.no_grad():
        for _ in range(3):
            model(batch)
        cuda.cuda.synchronize()
        traced.clear()
        graph = cuda.cuda.CUDAGraph()
        with cuda.cuda.graph(graph):
            model(batch)
        graph.replay()
    cuda.cuda.synchronize()
    assert semconv.GPU_TIME not in (traced.span("forward").attributes or {})


def test_reduce_overhead_and_graphed_callables_are_unharmed(cuda: Any, llama: Any, bare_recorder: Recorder) -> None:
    batch = ids(cuda, 1, 64)
    with cuda.no_grad():
        plain = llama(batch).logits
        bare_recorder.instrument()
        compiled = cuda.compile(llama, mode="reduce-overhead")
        for _ in range(4):
            out = compiled(batch).logits.clone()
        assert cuda.allclose(out, plain, rtol=0.1, atol=0.1)
    cuda.cuda.synchronize()
    times = [span.attributes.get(semconv.GPU_TIME) for span in bare_recorder.spans() if span.name == "forward"]
    assert times[-1], times
    square = cuda.nn.Linear(64, 64).to("cuda:0")
    sample = cuda.randn(4, 64, device="cuda:0")
    expected = square(sample)
    graphed = cuda.cuda.make_graphed_callables(square, (sample,))
    assert cuda.allclose(graphed(sample), expected, rtol=1e-3, atol=1e-3)


# -- memory ------------------------------------------------------------------------------------------------------


def test_peak_is_max_memory_allocated(cuda: Any, llama: Any, traced: Recorder, note: Note) -> None:
    batch = ids(cuda, 4, 2048)

    def call() -> None:
        with cuda.no_grad():
            llama(batch)

    warm_up(cuda, call)
    cuda.cuda.reset_peak_memory_stats()
    call()
    cuda.cuda.synchronize()
    theirs = cuda.cuda.max_memory_allocated()
    traced.clear()
    cuda.cuda.reset_peak_memory_stats()
    call()
    cuda.cuda.synchronize()
    found = traced.span("forward").attributes or {}
    assert found[semconv.MEMORY_PEAK] == theirs
    assert semconv.MEMORY_PEAK_EXACT not in found
    note("peak of a forward of 4 x 2048 / max_memory_allocated", f"{found[semconv.MEMORY_PEAK] / theirs:.4f}")
    traced.clear()
    call()  # does not raise it: bounds
    cuda.cuda.synchronize()
    found = traced.span("forward").attributes or {}
    assert found[semconv.MEMORY_PEAK_EXACT] is False
    assert found[semconv.MEMORY_PEAK_LEAST] <= theirs <= found[semconv.MEMORY_PEAK]


def test_kv_cache_is_as_large_as_said(cuda: Any, llama: Any, traced: Recorder) -> None:
    out = llama.generate(ids(cuda, 2, 100), max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
    cache = out.past_key_values
    layers = getattr(cache, "layers", None)
    tensors = (
        [t for layer in layers for t in (layer.keys, layer.values)]
        if layers is not None
        else [*cache.key_cache, *cache.value_cache]
    )
    real = sum(t.numel() * t.element_size() for t in tensors)
    assert traced.span("text_completion").attributes[semconv.KV_CACHE_SIZE] == real


def test_out_of_memory_for_real(cuda: Any, llama: Any, traced: Recorder, note: Note) -> None:
    _, total = cuda.cuda.mem_get_info()
    rows = 2 * total // (2048 * 32_000 * 2)  # logits of twice the board
    with pytest.raises(cuda.OutOfMemoryError), cuda.no_grad():
        llama(ids(cuda, rows, 2048))
    cuda.cuda.empty_cache()
    span = traced.span("forward")
    (event,) = [event for event in span.events if event.name == semconv.OUT_OF_MEMORY_EVENT]
    found = dict(event.attributes or {})
    assert found[semconv.OOM_REQUESTED] > 0
    assert found[semconv.OOM_FREE] >= 0
    assert span.attributes[semconv.BATCH_SIZE] == rows
    assert sum(traced.counts(semconv.OUT_OF_MEMORY).values()) >= 1
    note(
        "out of memory",
        f"{found[semconv.OOM_REQUESTED] / MIB:.0f} MiB asked for, {found[semconv.OOM_FREE] / MIB:.0f} free",
    )


# -- FLOPs, clocks, energy ---------------------------------------------------------------------------------------


def test_utilization_of_a_known_product(cuda: Any, note: Note) -> None:
    name = cuda.cuda.get_device_name(0)
    peak = peaks.peak(name, "bfloat16")
    if peak is None:
        pytest.skip(f"{name} is not in the table")
    device = accelerator.of("cuda:0")
    assert device is not None
    left, right = (cuda.randn(8192, 8192, device="cuda:0", dtype=cuda.bfloat16) for _ in range(2))
    warm_up(cuda, lambda: left @ right, 10)
    watch = device.timer(10)
    assert watch is not None
    for _ in range(20):
        left @ right
    watch.stop()
    cuda.cuda.synchronize()
    (seconds,) = watch.laps()
    share = 20 * 2 * 8192**3 / seconds / peak
    note("8192 x 8192 x 8192 product in bfloat16 / peak of the table", f"{share:.3f}")
    assert 0.4 < share < 1


def test_flops_and_utilization_of_a_forward(cuda: Any, llama: Any, traced: Recorder, note: Note) -> None:
    batch = ids(cuda, 8, 1024)
    with cuda.no_grad():
        warm_up(cuda, lambda: llama(batch))
        traced.clear()
        llama(batch)
    cuda.cuda.synchronize()
    found = traced.span("forward").attributes or {}
    if semconv.FLOPS_UTILIZATION in found:
        assert 0.02 < found[semconv.FLOPS_UTILIZATION] < 1
        note("MFU of a forward of 8 x 1024", f"{found[semconv.FLOPS_UTILIZATION]:.3f}")


def test_energy_and_cycles_of_some_seconds(cuda: Any, llama: Any, traced: Recorder, note: Note) -> None:
    pynvml = pytest.importorskip("pynvml")
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    batch = ids(cuda, 8, 1024)
    with cuda.no_grad():
        warm_up(cuda, lambda: llama(batch))
        traced.clear()
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        with inferspan.inference("seconds", model=llama):
            start = perf_counter()
            while perf_counter() - start < 5:
                llama(batch)
                cuda.cuda.synchronize()
        after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    sleep(0.5)
    found = traced.span("seconds").attributes or {}
    joules = (after - before) / 1e3
    assert found[semconv.ENERGY_CONSUMPTION] == pytest.approx(joules, rel=0.1)
    assert found[semconv.ENERGY_METHOD] == "board_counter"
    mhz = found[semconv.GPU_CYCLES] / found[semconv.GPU_TIME] / 1e6
    note("energy of 5 s / difference of the board's counter", f"{found[semconv.ENERGY_CONSUMPTION] / joules:.3f}")
    note("mean power, SM clock", f"{joules / 5:.0f} W, {mhz:.0f} MHz")
