"""Plain torch modules: what is put in ``eval()`` is a model, what trains is none, and a compiler sees neither."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import pipeline

import inferspan
from inferspan.integrations.patching import is_ours
from support import tiny
from support.recorder import Recorder

IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
ROWS = torch.ones(2, 4)
FORWARD = {
    "gen_ai.operation.name": "forward",
    "gen_ai.request.model": "Net",
    "inferspan.batch.size": 2,
    "inferspan.cold": False,
    "inferspan.device": "cpu",
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
}


FACTS = {"inferspan.model.class": "Net", "inferspan.model.parameters": 40, "inferspan.model.size": 160}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x) + 1


class Nested(Net):
    """Holds another of its own class."""

    def __init__(self, inner: Net | None = None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.inner is None else self.inner(super().forward(x))


class Calls(Net):
    """Brings a ``__call__`` of its own."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) * 2


@pytest.fixture
def dynamo() -> Iterator[Any]:
    import torch._dynamo
    import torch._dynamo.utils

    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


def called(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor = ROWS) -> list[Any]:
    with torch.no_grad():
        return model(x).tolist()


# -- what is one ------------------------------------------------------------------------------------------------------


def test_module_in_eval_gives_one_span_and_the_same_result(bare_recorder: Recorder) -> None:
    model = Net()
    plain = called(model)
    bare_recorder.instrument()
    model.eval()
    assert called(model) == plain
    bare_recorder.clear()
    assert called(model) == plain
    assert bare_recorder.trees() == ["forward"]
    assert bare_recorder.attributes("forward") == FORWARD


def test_module_not_put_in_eval_gives_none(recorder: Recorder) -> None:
    called(Net())
    assert recorder.trees() == []


def test_module_first_called_tells_itself(recorder: Recorder) -> None:
    called(Net().eval())
    assert recorder.attributes("forward") == {**FORWARD, "inferspan.cold": True, **FACTS}


def test_module_given_whole_numbers_counts_no_tokens(recorder: Recorder) -> None:
    called(nn.Sequential(nn.Embedding(100, 4)).eval(), IDS)
    found = recorder.attributes("forward")
    assert "gen_ai.usage.input_tokens" not in found
    assert found["inferspan.batch.size"] == 2


def test_module_that_raises_records_the_error(recorder: Recorder) -> None:
    model = Net().eval()
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 3))
    assert recorder.attributes("forward")["error.type"] == "RuntimeError"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(lambda: Nested(Nested().eval()), "Nested", id="of-its-own-class"),
        pytest.param(lambda: Calls(), "Calls", id="with-a-call-of-its-own"),
        pytest.param(lambda: nn.Sequential(Block(), nn.Linear(4, 4)), "Sequential", id="sequential"),
        pytest.param(lambda: type("Made", (Net,), {})(), "Made", id="class-made-afterwards"),
    ],
)
def test_module_gives_one_root(make: Callable[[], nn.Module], name: str, bare_recorder: Recorder) -> None:
    torch.manual_seed(0)
    plain = called(make().eval())
    bare_recorder.instrument()
    torch.manual_seed(0)
    model = make().eval()
    assert called(model) == plain
    assert bare_recorder.trees() == ["forward"]
    assert bare_recorder.attributes("forward")["gen_ai.request.model"] == name


def test_module_around_a_transformer_is_the_root(recorder: Recorder) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny.classifier()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(ids).logits

    called(Wrapper().eval(), IDS)
    assert recorder.trees() == ["forward"]
    assert recorder.attributes("forward")["gen_ai.request.model"] == "Wrapper"


def test_module_of_sentence_transformers_is_the_root(recorder: Recorder, tmp_path: Path) -> None:
    models = pytest.importorskip("sentence_transformers.models", reason="not in this environment")
    tiny.embedder().save_pretrained(tmp_path)
    tiny.word_tokenizer().save_pretrained(tmp_path)
    parts = [models.Transformer(str(tmp_path)), models.Pooling(32)]
    model = sys.modules["sentence_transformers"].SentenceTransformer(modules=parts).eval()
    recorder.clear()
    with torch.no_grad():
        model({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    assert recorder.trees() == ["forward"]
    found = recorder.attributes("forward")
    assert (found["inferspan.model.class"], found["gen_ai.usage.input_tokens"]) == ("SentenceTransformer", 8)


def test_transformer_put_in_eval_gives_one_span(recorder: Recorder) -> None:
    model = tiny.classifier()
    model.eval()
    model.bert.encoder.eval()
    model(IDS)
    assert recorder.trees() == ["forward"]
    assert "__call__" not in vars(type(model))


def test_pipeline_of_a_model_with_parts_in_eval_gives_the_same_trace(recorder: Recorder) -> None:
    model = tiny.classifier()
    pipe = pipeline("text-classification", model=model, tokenizer=tiny.word_tokenizer())
    pipe("hello world")
    plain = recorder.trees()
    recorder.clear()
    model.bert.encoder.eval()
    pipe("hello world")
    assert recorder.trees() == plain == [(plain[0][0], "tokenize", "forward", "detokenize")]


def test_module_in_an_inference_block_is_a_phase_of_it(recorder: Recorder) -> None:
    model = Net().eval()
    with inferspan.inference("rank", model=model):
        called(model)
        called(model)
    assert recorder.trees() == [("rank", "forward", "forward")]


# -- training ----------------------------------------------------------------------------------------------------------


def test_module_that_trains_gives_none(recorder: Recorder) -> None:
    model = Net().eval().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(ROWS).sum().backward()
        optimizer.step()
    assert recorder.trees() == []


@pytest.mark.parametrize("seen", [pytest.param(True, id="seen-before"), pytest.param(False, id="never-in-eval")])
def test_module_that_trains_around_a_frozen_one_gives_none(seen: bool, recorder: Recorder) -> None:
    model = Nested(Nested()) if seen else nn.Sequential(Net(), nn.Linear(4, 1))
    if seen:
        model.eval().train()
    (model.inner if seen else model[0]).eval()
    model(ROWS).sum().backward()
    assert recorder.trees() == []


def test_module_whose_teacher_is_asked_without_gradients_gives_none(recorder: Recorder) -> None:
    class Distilled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                target = self.teacher(x)
            return (super().forward(x) - target).square().sum()

    model = Distilled().eval().train()
    model.teacher.eval()
    model(ROWS).backward()
    assert recorder.trees() == []


def test_normalization_that_is_frozen_is_no_model(recorder: Recorder) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].eval()
    called(model)
    assert recorder.trees() == []
    assert "__call__" not in vars(nn.BatchNorm1d)


# -- compiled, scripted, exported ------------------------------------------------------------------------------------


def in_place(model: nn.Module, **options: Any) -> nn.Module:
    model.compile(**options)
    return model


def of_forward(model: nn.Module, **options: Any) -> nn.Module:
    model.forward = torch.compile(model.forward, **options)
    return model


class Service:
    """Holds a model and compiles a method that uses it."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model = model
        self.rank = torch.compile(self._rank, **options)

    def _rank(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * 2


@pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(torch.compile, id="model"),
        pytest.param(in_place, id="in-place"),
        pytest.param(of_forward, id="forward"),
        pytest.param(lambda model, **options: torch.compile(lambda x: model(x) * 2, **options), id="function"),
        pytest.param(lambda model, **options: torch.compile(model.forward, **options), id="bound-forward"),
        pytest.param(lambda model, **options: Service(model, **options).rank, id="method"),
    ],
)
@pytest.mark.parametrize("kind", [pytest.param(Net, id="net"), pytest.param(nn.Sequential, id="sequential")])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_module_compiled_gives_the_same_graphs_and_one_span(
    compiled: Callable[..., Any], kind: Any, backend: str, dynamo: Any, bare_recorder: Recorder
) -> None:
    def run() -> tuple[list[Any], dict[str, Any]]:
        dynamo.reset()
        dynamo.utils.counters.clear()
        torch.manual_seed(0)
        model = (Net() if kind is Net else nn.Sequential(Block(), nn.Linear(4, 4))).eval()
        function = compiled(model, backend=backend, fullgraph=True)
        result = [called(function), called(function), called(function, torch.ones(3, 4))]
        return result, {name: dict(counted) for name, counted in dynamo.utils.counters.items()}

    plain = run()
    bare_recorder.instrument()
    assert run() == plain
    assert bare_recorder.trees() == ["forward"] * 3
    assert {span.attributes["inferspan.batch.size"] for span in bare_recorder.spans()} == {2, 3}


def test_compiled_function_that_raises_ends_the_inference_with_the_error(dynamo: Any, recorder: Recorder) -> None:
    model = Net().eval()

    @torch.compile(backend="eager")
    def function(x: torch.Tensor) -> torch.Tensor:
        return model(x)

    try:
        raise KeyError("handled by the program when it calls")
    except KeyError:
        called(function)
        with pytest.raises(Exception, match=r"shape|size"):
            function(torch.ones(2, 3))
    assert ["error.type" in span.attributes for span in recorder.spans()] == [False, True]
    called(model)  # nothing is left open
    assert len(recorder.trees()) == 3


def test_compiled_function_without_a_model_gives_none(dynamo: Any, recorder: Recorder) -> None:
    function = torch.compile(lambda x: x * 2, backend="eager")
    called(function)
    assert recorder.trees() == []


def scripted(model: nn.Module) -> Any:
    return torch.jit.script(model)


def traced(model: nn.Module) -> Any:
    with torch.no_grad():
        return torch.jit.trace(model, (ROWS,), check_trace=False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("made", "name"),
    [
        pytest.param(scripted, "Net", id="script"),
        pytest.param(traced, "Net", id="trace"),
        pytest.param(lambda model: torch.jit.freeze(scripted(model)), "Net", id="frozen"),
        pytest.param(lambda model: torch.fx.symbolic_trace(model).eval(), "Net", id="fx"),
        pytest.param(lambda model: torch.export.export(model, (ROWS,)).module(), "GraphModule", id="export"),
    ],
)
def test_program_made_of_a_module_gives_one_span(
    made: Callable[[nn.Module], Any], name: str, dynamo: Any, bare_recorder: Recorder
) -> None:
    model = Net().eval()
    plain = called(made(model))
    bare_recorder.instrument()
    model = copy.deepcopy(model).eval()
    program = made(model)
    bare_recorder.clear()  # tracing by jit runs the model
    assert called(program) == plain
    assert bare_recorder.trees() == ["forward"]
    assert bare_recorder.attributes("forward")["gen_ai.request.model"] == name
    inferspan.uninstrument()
    assert called(program) == plain


# -- by name, by hand, not at all --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "spans"),
    [
        pytest.param({"Net"}, 2, id="class"),
        pytest.param({f"{__name__}.Net"}, 2, id="qualified"),
        pytest.param({"Later"}, 0, id="another"),
        pytest.param((), 0, id="none"),
        pytest.param({"eval"}, 1, id="eval"),
    ],
)
def test_classes_named_in_the_setting_are_models(modules: Any, spans: int, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(modules=modules)
    called(Net())
    called(Net().eval())
    assert bare_recorder.trees() == ["forward"] * spans
    inferspan.uninstrument()
    assert "__call__" not in vars(Net)
    assert "__init_subclass__" not in vars(nn.Module)


def test_class_named_in_the_setting_may_come_later(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(modules="Later")
    called(type("Later", (Net,), {})())
    assert bare_recorder.trees() == ["forward"]


def test_modules_are_left_alone_without_their_hook(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(hooks="models")
    assert not is_ours(nn.Module.eval)
    called(Net().eval())
    tiny.classifier().eval()(IDS)
    assert bare_recorder.trees() == ["forward"]


def test_transformers_are_left_alone_without_theirs(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(hooks="modules")
    tiny.classifier().eval()(IDS)
    assert bare_recorder.trees() == []


def test_module_instrumented_by_hand_has_its_name_until_undone(recorder: Recorder) -> None:
    before = dict(vars(Net))
    model = Net()
    with inferspan.instrument_module(model, name="ranker"):
        called(model)
        assert recorder.attributes("forward") == {
            **FORWARD,
            "gen_ai.request.model": "ranker",
            "inferspan.cold": True,
            **FACTS,
        }
        model(ROWS)  # trains
        called(Net())
    called(model)
    assert recorder.trees() == ["forward"]
    assert dict(vars(Net)) == before


def test_module_instrumented_by_hand_leaves_others_of_its_class(recorder: Recorder) -> None:
    model, other = Net(), Net().eval()
    handle = inferspan.instrument_module(other)
    inferspan.instrument_module(model).remove()
    handle.remove()
    handle.remove()
    called(model)
    assert recorder.trees() == []
    called(other)
    assert recorder.trees() == ["forward"]


def test_module_may_be_instrumented_by_hand_before_all_else(bare_recorder: Recorder) -> None:
    model = Net()
    handle = inferspan.instrument_module(torch.compile(model, backend="eager"))
    assert "__call__" not in vars(Net)
    for _ in range(2):
        bare_recorder.instrument(hooks=())
        called(model)
        inferspan.uninstrument()
    assert bare_recorder.trees() == ["forward"] * 2
    assert "__call__" not in vars(Net)
    handle.remove()
    bare_recorder.instrument()
    called(model)
    assert bare_recorder.trees() == ["forward"] * 2


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not str"):
        inferspan.instrument_module("Net")
    for layers in (True, 0, -1, 1.5):
        with pytest.raises(ValueError, match="'transformer', a depth from 1 on, a pattern"):
            inferspan.instrument_module(Net(), layers=layers)  # type: ignore[arg-type]


# -- nothing is left behind --------------------------------------------------------------------------------------------


def test_modules_put_back_are_as_before(bare_recorder: Recorder) -> None:
    before = [dict(vars(cls)) for cls in (Net, Calls, nn.Module, nn.Sequential, torch.jit.ScriptModule)]
    bare_recorder.instrument()
    model = Calls().eval()
    plain = called(model)
    kept = type(model).__call__
    inferspan.uninstrument()
    assert [dict(vars(cls)) for cls in (Net, Calls, nn.Module, nn.Sequential, torch.jit.ScriptModule)] == before
    assert called(model) == plain == kept(model, ROWS).tolist()


@pytest.mark.parametrize("remembers", [pytest.param(True, id="by-hand"), pytest.param(False, id="eval")])
def test_module_dropped_is_freed_and_so_is_its_class(remembers: bool, recorder: Recorder) -> None:
    kind: Any = type("Passing", (Net,), {})
    model = kind().eval()
    if remembers:
        inferspan.instrument_module(model, layers=1)
    called(model)
    recorder.clear()
    model, cls = weakref.ref(model), weakref.ref(kind)
    del kind
    inferspan.force_flush()
    gc.collect()
    assert model() is None
    gc.collect()
    assert cls() is None


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
    ],
)
def test_module_copied_has_nothing_of_ours(copied: Callable[[Any], Any], recorder: Recorder) -> None:
    model = Net().eval()
    plain = called(model)
    other = copied(model)
    assert vars(other).keys() == vars(Net()).keys()
    with torch.no_grad():
        other.blocks[1].linear.weight.zero_()
        other.blocks[1].linear.bias.zero_()
    recorder.clear()
    assert called(other) == [[1.0] * 4] * 2
    assert recorder.trees() == []  # nobody has put the copy in eval()
    assert called(other.eval()) == [[1.0] * 4] * 2
    assert recorder.trees() == ["forward"]
    assert called(model) == plain


class Loader:
    """In place of torch's own in C++: a package takes minutes to compile."""

    def get_call_spec(self) -> list[str]:
        pytree = torch.utils._pytree
        specs = (pytree.tree_flatten(value)[1] for value in (((ROWS,), {}), ROWS))
        return [pytree.treespec_dumps(spec) for spec in specs]

    def boxed_run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [inputs[0] * 3]


def test_package_of_aot_inductor_gives_one_span(bare_recorder: Recorder) -> None:
    package = pytest.importorskip("torch.export.pt2_archive._package", reason="from torch 2.8 on")
    bare_recorder.instrument()
    model = package.AOTICompiledModel(Loader())
    assert called(model) == [[3.0] * 4] * 2
    assert bare_recorder.trees() == ["forward"]
    assert bare_recorder.attributes("forward")["inferspan.batch.size"] == 2
    inferspan.uninstrument()
    assert not is_ours(package.AOTICompiledModel.__call__)
