"""What only CUDA has of ``tests/integration/test_never_in_the_way.py``: graphs, and models on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import checks, mlp, tiny  # noqa: E402 - after what they import
from support.checks import Subject, plain  # noqa: E402
from support.recorder import Recorder  # noqa: E402
from support.rows import Row, Target, assert_same, cells  # noqa: E402

DEVICE = "cuda:0"


# -- the columns ------------------------------------------------------------------------------------------------------


def _on_device(make: Callable[[], Any], *args: Any) -> Callable[[], Subject]:
    return lambda: Subject(make().to(DEVICE), *(arg.to(DEVICE) for arg in args))


IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
_bert = _on_device(lambda: tiny.classifier(return_dict=False), IDS)
_llama = _on_device(lambda: tiny.causal_lm(num_hidden_layers=1, eos_token_id=None), IDS)
_mlp = _on_device(mlp.seeded, torch.linspace(-1, 1, 16).reshape(2, 8))

BERT = Target("bert", _bert)
LLAMA = Target("llama", _llama)
MODULE = Target("module", _mlp)
BY_HAND = Target("by-hand", _mlp, by_hand={"name": "mlp"})
LAYERS = Target("layers", _bert, settings={"layers": "transformer"}, spans=3)
LLAMA_LAYERS = Target("llama-layers", _llama, settings={"layers": "transformer"}, spans=2)
MODULE_LAYERS = Target("by-hand-layers", _mlp, by_hand={"layers": "blocks.*"}, spans=3)

PLAIN = (MODULE, BY_HAND, MODULE_LAYERS)
CAUSAL = (LLAMA, LLAMA_LAYERS)
MODULES = (BERT, LAYERS, *PLAIN)
ALL = (*MODULES, *CAUSAL)


# -- what is done -----------------------------------------------------------------------------------------------------


def captured(subject: Subject) -> Any:
    """A graph of the forward, captured on a stream of its own, and replayed on other input."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            subject.model(*subject.args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = subject.model(*subject.args)
    results = []
    for _ in range(3):
        graph.replay()
        results.append(plain(result))
        subject.args[0].copy_(subject.args[0].flip(0))
    return results


def graphed(subject: Subject) -> Any:
    """``make_graphed_callables``, which asserts that a module has no hooks; forward and backward."""
    sample = torch.randn_like(subject.args[0], requires_grad=True)
    before = subject()
    model = torch.cuda.make_graphed_callables(subject.model, (sample,))
    result = model(*subject.args)
    result.sum().backward()
    return before, plain(result), [plain(each.grad) for each in subject.model.parameters()], model is subject.model


def in_another_stream(subject: Subject) -> Any:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = subject()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def in_half_precision(subject: Subject) -> Any:
    with torch.autocast("cuda", dtype=torch.float16):
        return subject()


def memory_as_before(subject: Subject) -> Any:
    """Nothing stays on the device, and the peak that the program counts is not reset."""
    subject()  # what the libraries keep for good
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    subject()
    return torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before


def generated_compiled(subject: Subject) -> Any:
    """transformers' own choice on a GPU: a static cache, and steps compiled with ``mode="reduce-overhead"``."""
    options = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    return checks.counted(lambda: [plain(subject.model.generate(*subject.args, **options)) for _ in range(2)])


# fmt: off
TABLE = [
    Row("CUDA graph",                 captured,                                                  ALL),
    Row("make_graphed_callables",     graphed,                                                   PLAIN),
    Row("compile, reduce-overhead",   checks.compiled("inductor", mode="reduce-overhead"),       ALL, "c++"),
    Row("compile, max-autotune",      checks.compiled("inductor", mode="max-autotune"),          (BERT, *PLAIN), "c++"),
    Row("compile, inductor",          checks.compiled("inductor", fullgraph=True),               ALL, "c++"),
    Row("generate, compiled steps",   generated_compiled,                                        CAUSAL, "c++"),
    Row("another stream",             in_another_stream,                                         ALL),
    Row("autocast",                   in_half_precision,                                         ALL),
    Row("memory",                     memory_as_before,                                          ALL),
    Row("deepcopy",                   checks.copied(checks.copy.deepcopy),                       ALL),
    Row("torch.save",                 checks.copied(checks.saved),                               ALL),
    Row("generate, sampled",          checks.generated(do_sample=True),                          CAUSAL),
    Row("freed",                      checks.freed,                                              ALL),
    Row("freed after an error",       checks.freed_after_an_error,                               ALL),
    Row("gone meanwhile",             checks.gone_meanwhile,                                     ALL),
]
# fmt: on


@pytest.fixture(autouse=True)
def compiled_anew(cuda: Any) -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("row", "target"), cells(TABLE))
def test_same_with_and_without(row: Row, target: Target, bare_recorder: Recorder) -> None:
    assert_same(row, target, bare_recorder)
