"""What programs, compilers and libraries do with modules. Each check does one of these things to a subject and returns
all that can be seen of it, as plain data that two runs can be compared by.

A check that yields has done its first half without Inferspan, which comes in at the yield, or does not.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import inspect
import io
import multiprocessing
import pickle
import pydoc
import re
import tempfile
import threading
import unittest.mock
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._dynamo.utils
import transformers
import wrapt
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import inferspan
from inferspan.instrumentor import InferspanInstrumentor

WAIT_S = 120


class Subject:
    """A model (a module, a pipeline, a tokenizer), and what to call it with."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs

    def __call__(self, model: Any = None) -> Any:
        """What the model, or another in its place, gives, as plain data."""
        with torch.no_grad():
            return plain((self.model if model is None else model)(*self.args, **self.kwargs))

    @property
    def root(self) -> Any:
        """The module that is called: a pipeline's model; ``None`` of a tokenizer."""
        return self.model if isinstance(self.model, torch.nn.Module) else getattr(self.model, "model", None)

    def parameters(self, model: Any = None) -> dict[str, torch.Tensor]:
        return dict((model or self.root).named_parameters())


Check = Callable[[Subject], Any]


def plain(value: Any) -> Any:
    """A result with its types, and without anything that two runs could not share."""
    if isinstance(value, torch.Tensor):
        return type(value).__name__, str(value.dtype), value.detach().tolist()
    if isinstance(value, Mapping):
        return type(value).__name__, {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [plain(each) for each in value]
    if isinstance(value, (str, int, float, bool, bytes, type(None))):
        return value
    return type(value).__name__


# -- compiled --------------------------------------------------------------------------------------------------------


def counted(call: Callable[[], Any]) -> Any:
    """What the call gives, and what the compiler says that it did for it: graphs, breaks, recompilations."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    result = call()
    counters = {
        name: dict(found) for name, found in torch._dynamo.utils.counters.items() if found and name in _COUNTERS
    }
    assert counters["stats"]["unique_graphs"] > 0, counters
    return result, counters


_COUNTERS = ("stats", "frames", "graph_break", "recompiles", "unimplemented")


def compiled(backend: str, **options: Any) -> Check:
    """``torch.compile(model)``, called twice."""

    def check(subject: Subject) -> Any:
        def run() -> Any:
            model = torch.compile(subject.model, backend=backend, **options)
            return type(model).__name__, subject(model), subject(model)

        return counted(run)

    return check


def compiled_in_place(subject: Subject) -> Any:
    def run() -> Any:
        subject.model.compile(backend="eager", fullgraph=True)
        return subject(), subject()

    return counted(run)


def compiled_forward(subject: Subject) -> Any:
    def run() -> Any:
        subject.model.forward = torch.compile(subject.model.forward, backend="eager", fullgraph=True)
        return subject(), subject()

    return counted(run)


def compiled_function(subject: Subject) -> Any:
    """A compiled function that calls the model."""
    function = torch.compile(lambda *a, **k: subject.model(*a, **k), backend="eager", fullgraph=True)
    return counted(lambda: (subject(function), subject(function)))


def compiled_with_breaks(subject: Subject) -> Any:
    """Graphs that break in the middle, in a hook of the program's own."""

    def run() -> Any:
        next(subject.root.children()).register_forward_hook(lambda *_: print(end=""))
        return subject(torch.compile(subject.model, backend="eager"))

    return counted(run)


def compiled_dynamic(dynamic: bool | None) -> Check:
    """Input of four sizes: as many graphs and recompilations."""

    def check(subject: Subject) -> Any:
        def run() -> Any:
            model = torch.compile(subject.model, backend="eager", dynamic=dynamic)
            with torch.no_grad():
                return [plain(model(torch.cat([subject.args[0]] * rows))) for rows in (1, 2, 3, 5)]

        return counted(run)

    return check


def compiled_before(subject: Subject) -> Generator[None, None, Any]:
    """Compiled before Inferspan comes in: nothing is compiled again."""
    model = torch.compile(subject.model, backend="eager", fullgraph=True)
    first = counted(lambda: subject(model))
    torch._dynamo.utils.counters.clear()
    yield
    return first, subject(model), dict(torch._dynamo.utils.counters["stats"])


def generated_compiled(fullgraph: bool) -> Check:
    """``generate`` with a static cache, whose steps are compiled."""

    def check(subject: Subject) -> Any:
        config = transformers.CompileConfig(backend="eager", mode=None, fullgraph=fullgraph)
        config._compile_all_devices = True
        options = {"cache_implementation": "static", "compile_config": config, "disable_compile": False}
        generate = subject.model.generate
        return counted(lambda: plain(generate(*subject.args, max_new_tokens=4, do_sample=False, **options)))

    return check


# -- exported, traced, transformed -----------------------------------------------------------------------------------


def exported(strict: bool) -> Check:
    def check(subject: Subject) -> Any:
        with torch.no_grad():
            program = torch.export.export(subject.model, subject.args, subject.kwargs, strict=strict)
        stacks = [node.meta.get("nn_module_stack", {}).values() for node in program.graph.nodes]
        return program.graph_module.code, [list(map(str, stack)) for stack in stacks], subject(program.module())

    return check


def jit_traced(subject: Subject) -> Any:
    with torch.no_grad():
        traced = torch.jit.trace(subject.model, subject.args)
    graph = re.sub(r"___torch_mangle_\d+\.", "", str(traced.inlined_graph))  # a number for each class that is traced
    return str(traced.code), graph, subject(traced)


def jit_scripted(subject: Subject) -> Any:
    scripted = torch.jit.script(subject.model)
    return str(scripted.code), subject(scripted), subject(torch.jit.freeze(scripted))


def fx_traced(subject: Subject) -> Any:
    traced = torch.fx.symbolic_trace(subject.model)
    return traced.code, [node.name for node in traced.graph.nodes], subject(traced)


def fx_made(subject: Subject) -> Any:
    """``make_fx``: the operators that really run."""
    from torch.fx.experimental.proxy_tensor import make_fx

    # with fake tensors: what looks at the content of a mask refuses to be traced with real ones
    return make_fx(lambda *args: subject.model(*args), tracing_mode="fake", _allow_non_fake_inputs=True)(
        *subject.args
    ).code


def with_fake_tensors(subject: Subject) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        result = subject.model(*subject.args)
    first = result if isinstance(result, torch.Tensor) else result[0]
    return type(first).__name__, tuple(first.shape)


def flops_counted(subject: Subject) -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        subject()
    return counter.get_total_flops(), sorted(map(str, counter.get_flop_counts()))


def called_functionally(subject: Subject) -> Any:
    doubled = {name: value * 2 for name, value in subject.parameters().items()}
    with torch.no_grad():
        return plain(torch.func.functional_call(subject.model, doubled, subject.args, subject.kwargs))


def mapped(subject: Subject) -> Any:
    """``vmap`` over an ensemble of two."""
    both = {name: torch.stack([value, value * 0.5]) for name, value in subject.parameters().items()}

    def one(parameters: Any) -> Any:
        return torch.func.functional_call(subject.model, parameters, subject.args)

    with torch.no_grad():
        return plain(torch.func.vmap(one)(both))


def differentiated(subject: Subject) -> Any:
    jacobian = torch.func.jacrev(lambda x: subject.model(x))(subject.args[0])
    tangent = torch.func.jvp(lambda x: subject.model(x), (subject.args[0],), (torch.ones_like(subject.args[0]),))
    return plain(jacobian), plain(tangent)


# -- copied, saved, sent ---------------------------------------------------------------------------------------------


def copied(how: Callable[[Any], Any]) -> Check:
    """A copy gives the same, and is one of its own: with other weights it gives other things, the first does not."""

    def check(subject: Subject) -> Any:
        before = subject()
        other = how(subject.model)
        same = subject(other)
        root = Subject(other).root
        with torch.no_grad():
            for parameter in root.parameters():
                parameter.mul_(0.5)
        return before, same, subject(other), subject(), type(other).__name__, sorted(vars(other)), type(root).__name__

    return check


def copied_shallowly(subject: Subject) -> Any:
    other = copy.copy(subject.model)
    return subject(other), type(other).__name__, sorted(vars(other)), Subject(other).root.training


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def saved_before(subject: Subject) -> Generator[None, None, Any]:
    """Called and pickled before Inferspan comes in, and loaded then."""
    before, data = subject(), pickle.dumps(subject.model)
    yield
    return before, subject(pickle.loads(data))


def size_saved(subject: Subject) -> Any:
    """Not one byte of ours goes into the file."""
    subject()
    return len(pickle.dumps(subject.model, protocol=4)), sorted(subject.root.state_dict())


def bound_methods_saved(*names: str) -> Check:
    def check(subject: Subject) -> Any:
        found = []
        for how in (pickled, saved, copy.deepcopy, copy.copy):
            for name in names:
                method = how(getattr(subject.model, name))
                found.append((name, method.__name__, type(method.__self__).__name__, inspect.ismethod(method)))
        method = pickled(getattr(subject.model, names[0]))
        return found, subject(method), [pickled(getattr(type(subject.model), name)).__name__ for name in names]

    return check


def shared(subject: Subject) -> Any:
    """``share_memory``: what a child process writes is seen here."""
    before = subject()
    subject.root.share_memory()
    child = multiprocessing.get_context("fork").Process(target=_halve, args=(subject.root,))
    child.start()
    child.join(WAIT_S)
    assert child.exitcode == 0
    return before, subject(), all(each.is_shared() for each in subject.root.parameters())


def _halve(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


class _Called(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Its items are what the subject gives, in the worker."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self.subject()


def _first(items: Any) -> Any:
    return items[0]


def loaded_by(method: str) -> Check:
    """A worker of a DataLoader calls the model."""

    def check(subject: Subject) -> Any:
        here = subject()
        loader = torch.utils.data.DataLoader(
            _Called(subject), num_workers=1, multiprocessing_context=method, timeout=WAIT_S, collate_fn=_first
        )
        return here, list(loader)

    return check


class _Texts(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]


def piped_by(method: str) -> Check:
    """A pipeline that preprocesses in a worker of its own."""

    def check(subject: Subject) -> Any:
        before = multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method(method, force=True)
        try:
            items = subject.model(_Texts(subject.args[0]), num_workers=1)
            return type(items).__name__, len(items), list(items)
        finally:
            multiprocessing.set_start_method(before, force=True)

    return check


def pooled_by(method: str) -> Check:
    """A pool of processes calls the model."""

    def check(subject: Subject) -> Any:
        here = subject()
        with multiprocessing.get_context(method).Pool(1) as pool:
            return here, pool.map_async(_call, [subject, subject]).get(WAIT_S)

    return check


def _call(subject: Subject) -> Any:
    return subject()


# -- changed by other libraries --------------------------------------------------------------------------------------


def offloaded(subject: Subject) -> Any:
    """accelerate keeps the weights elsewhere, and puts its hooks on every module."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    model = cpu_offload(subject.model, execution_device=torch.device("cpu"))
    device = str(next(model.parameters()).device)
    result = device, subject(model), subject(copy.deepcopy(model)), sorted(vars(model)), "forward" in vars(model)
    remove_hook_from_module(model, recurse=True)
    return result, sorted(vars(model))


def offloaded_to_disk(subject: Subject) -> Any:
    from accelerate import disk_offload

    with tempfile.TemporaryDirectory() as folder:
        model = disk_offload(subject.model, folder, execution_device=torch.device("cpu"))
        return (
            subject(model),
            str(next(model.parameters()).device),
            sorted(path.name for path in Path(folder).iterdir()),
        )


def hooked_by_accelerate(subject: Subject) -> Any:
    from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module, remove_hook_from_module

    seen: list[str] = []

    class Seeing(ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append("pre")
            return args, kwargs

        def post_forward(self, module: Any, output: Any) -> Any:
            seen.append("post")
            return output

    model = subject.model
    before = model.forward
    add_hook_to_module(model, SequentialHook(Seeing(), Seeing()))
    result = subject(), subject(pickled_by_state(model)), list(seen), str(inspect.signature(model.forward))
    remove_hook_from_module(model)
    return result, model.forward == before, subject(), type(model).__name__


def pickled_by_state(model: Any) -> Any:
    """A copy by hand: the weights, in a copy of the class."""
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    return other


def _lora(model: Any) -> Any:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return peft.get_peft_model(model, config).eval()


def lora(subject: Subject) -> Any:
    """peft: forward, generate, without the adapter, saved, merged."""
    model = _lora(subject.model)
    results = [subject(model), plain(model.generate(*subject.args, max_new_tokens=4, do_sample=False))]
    with model.disable_adapter():
        results.append(subject(model))
    results.append(subject(copy.deepcopy(model)))
    merged = model.merge_and_unload()
    return results, subject(merged), type(merged).__name__, sorted(merged.state_dict())


def lora_trained(subject: Subject) -> Any:
    model = _lora(subject.model).train()
    model(*subject.args, labels=subject.args[0]).loss.backward()
    return [(name, plain(each.grad)) for name, each in model.named_parameters() if each.requires_grad]


def quantised_by_bitsandbytes(bits: int) -> Check:
    def check(subject: Subject) -> Any:
        import bitsandbytes  # noqa: F401

        own = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        config = transformers.BitsAndBytesConfig(**own, llm_int8_skip_modules=["classifier"])
        options = {"quantization_config": config, "device_map": "cpu", "dtype": torch.float32}
        with tempfile.TemporaryDirectory() as folder:
            subject.model.save_pretrained(folder)
            model = type(subject.model).from_pretrained(folder, **options).eval()
        kinds = sorted({type(module).__name__ for module in model.modules()})
        assert any(name.startswith("Linear") and name != "Linear" for name in kinds), kinds
        return subject(model), kinds

    return check


def quantised_by_torchao(subject: Subject) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(subject.model, Int8WeightOnlyConfig())
    types = sorted({type(each).__name__ for each in subject.model.parameters()})
    assert len(types) > 1, types
    return subject(), types, subject(copy.deepcopy(subject.model))


def quantised_and_compiled(subject: Subject) -> Any:
    return quantised_by_torchao(subject), compiled("eager", fullgraph=True)(subject)


def quantised_by_torch(subject: Subject) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.ao.quantization.quantize_dynamic(subject.model, {torch.nn.Linear}, dtype=torch.qint8)
    return subject(model), sorted({type(module).__name__ for module in model.modules()})


def parametrised(subject: Subject) -> Any:
    """``torch.nn.utils.parametrize`` gives a module a class of its own."""
    linear = next(module for module in subject.root.modules() if isinstance(module, torch.nn.Linear))
    torch.nn.utils.parametrizations.weight_norm(linear)
    return subject(), type(linear).__name__


# -- trained ---------------------------------------------------------------------------------------------------------


def _gradients(subject: Subject) -> Any:
    result = subject.model(*subject.args, **subject.kwargs)
    (result if isinstance(result, torch.Tensor) else result[0]).float().pow(2).sum().backward()
    return [(name, None if each.grad is None else plain(each.grad)) for name, each in subject.parameters().items()]


def trained(subject: Subject) -> Any:
    subject.model.train()
    torch.manual_seed(0)
    return _gradients(subject)


def checkpointed(reentrant: bool) -> Check:
    """Gradient checkpointing: the forward of each block runs again in the backward."""

    def check(subject: Subject) -> Any:
        model = subject.model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        assert model.is_gradient_checkpointing
        torch.manual_seed(0)
        return _gradients(subject)

    return check


# -- hooks, results, errors ------------------------------------------------------------------------------------------


def hooks_run(subject: Subject) -> Generator[None, None, Any]:
    """Hooks that the program registered, half of them before, half of them after: each is called, and in order."""
    seen: list[str] = []
    root, child = subject.root, next(subject.root.children())

    def noting(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    def register(when: str) -> list[Any]:
        handles = [torch.nn.modules.module.register_module_forward_pre_hook(noting(f"{when} global pre"))]
        handles.append(torch.nn.modules.module.register_module_forward_hook(noting(f"{when} global")))
        for name, module in (("root", root), ("child", child)):
            handles.append(module.register_forward_pre_hook(noting(f"{when} {name} pre")))
            handles.append(module.register_forward_pre_hook(noting(f"{when} {name} first"), prepend=True))
            handles.append(module.register_forward_hook(noting(f"{when} {name}"), with_kwargs=True))
            handles.append(module.register_forward_hook(noting(f"{when} {name} always"), always_call=True))
            handles.append(module.register_full_backward_hook(noting(f"{when} {name} backward")))
        return handles

    handles = register("before")
    yield
    handles += register("after")
    try:
        return subject(), _gradients(subject), seen
    finally:
        for handle in handles:
            handle.remove()


def hook_changes_the_result(subject: Subject) -> Any:
    subject.root.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs), with_kwargs=True)
    subject.root.register_forward_hook(lambda *_: ("instead",))
    return plain(subject.root(*subject.args, **subject.kwargs))


def called(subject: Subject) -> Any:
    """What is returned, of which type, and what stays behind in the model."""
    result = subject(), subject()
    model = subject.root
    inside = sorted(vars(model)), repr(model), sorted(model.state_dict()), [name for name, _ in model.named_modules()]
    return result, inside, sorted(vars(subject.model)), torch.get_rng_state().tolist()


def failed(subject: Subject) -> Any:
    """The program's own exception comes out, the very object, with nothing said about it by us."""
    error = ValueError("own")

    def fail(*_: Any) -> None:
        raise error

    next(subject.root.children()).register_forward_hook(fail)
    try:
        subject()
    except ValueError as raised:
        return raised is error, raised.__cause__, raised.__context__, getattr(raised, "__notes__", None)
    return None


def generated(**options: Any) -> Check:
    """``generate`` draws the same tokens, and leaves the random stream where it does without us."""

    def check(subject: Subject) -> Any:
        torch.manual_seed(0)
        result = subject.model.generate(*subject.args, max_new_tokens=5, **options)
        return plain(result), torch.get_rng_state().tolist()

    return check


# -- looked at -------------------------------------------------------------------------------------------------------


def looked_at(subject: Subject) -> Any:
    """All that a class shows: every attribute with its kind, name, signature and text."""
    subject()
    cls = type(subject.model)
    return {name: _look(inspect.getattr_static(cls, name), getattr(cls, name, None)) for name in dir(cls)}


def _look(raw: Any, value: Any) -> Any:
    if not callable(value):
        return type(raw).__name__
    origin = inspect.unwrap(value)
    names = [getattr(value, name, None) for name in ("__name__", "__doc__")]
    names += [getattr(origin, name, None) for name in ("__qualname__", "__module__")]
    try:
        return type(raw).__name__, names, str(inspect.signature(value)), inspect.getsource(value)
    except (ValueError, TypeError, OSError):
        return type(raw).__name__, names


def helped(subject: Subject) -> Any:
    """``help()`` of the model and of its class."""
    text = [pydoc.plain(pydoc.render_doc(each)).splitlines() for each in (subject.model, type(subject.model))]
    return list(map(sorted, text))  # a method that a class inherits may be listed under another of its bases


def methods(*names: str) -> Check:
    """Bound methods are bound, and show what they are."""

    def check(subject: Subject) -> Any:
        model = subject.model
        found = [getattr(model, name) for name in names]
        return [
            (
                type(method).__name__,
                method.__self__ is model,
                method.__func__ is getattr(type(model), name),
                method == getattr(model, name),
                inspect.ismethod(method),
                inspect.isgeneratorfunction(method),
                inspect.iscoroutinefunction(method),
                str(inspect.signature(method)),
                inspect.unwrap(method).__qualname__,
            )
            for name, method in zip(names, found, strict=True)
        ]

    return check


def is_what_it_is(subject: Subject) -> Any:
    subject()
    model, cls = subject.model, type(subject.model)
    library = transformers.Pipeline if hasattr(model, "_forward_params") else torch.nn.Module
    kinds = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    return isinstance(model, library), model.__class__ is cls, kinds, callable(model), type(cls).__name__


def freed(subject: Subject) -> Any:
    """A model that nobody refers to any more is freed, its weights with it, at the same moment as without us."""
    subject()
    return _fate(subject)


def freed_after_an_error(subject: Subject) -> Any:
    result = failed(subject)
    del result
    return _fate(subject)


def freed_after_compiling(subject: Subject) -> Any:
    subject(torch.compile(subject.model, backend="eager"))
    torch._dynamo.reset()
    return _fate(subject)


def _fate(subject: Subject) -> Any:
    weights = weakref.ref(next(subject.root.parameters()))
    watched = [weakref.ref(subject.model), weakref.ref(subject.root), weights]
    subject.model = None
    at_once = [each() is None for each in watched]
    inferspan.force_flush(WAIT_S)
    gc.collect()
    after = [each() is None for each in watched]
    assert all(after), after
    return at_once


# -- subclasses ------------------------------------------------------------------------------------------------------


def subclassed(subject: Subject) -> Any:
    """A class made while Inferspan is there, with its own forward and ``__call__``."""
    return _called_as(_subclass(type(subject.model)), subject)


def subclassed_before(subject: Subject) -> Generator[None, None, Any]:
    own = _subclass(type(subject.model))
    yield
    return _called_as(own, subject)


def _subclass(base: type) -> type:
    class Own(base):  # type: ignore[misc, valid-type]
        def __init_subclass__(cls, **kwargs: Any) -> None:
            cls.made = kwargs.pop("made")
            super().__init_subclass__(**kwargs)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls = [*getattr(self, "calls", []), "own"]
            return super().__call__(*args, **kwargs)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls = [*self.calls, "forward"]
            return super().forward(*args, **kwargs)

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            self.calls = [*getattr(self, "calls", []), "generate"]
            return super().generate(*args, **kwargs)

    class Further(Own, made="so"):
        pass

    return Further


def _called_as(cls: type, subject: Subject) -> Any:
    subject.model.__class__ = cls
    result = subject()
    if hasattr(transformers.GenerationMixin, "generate") and isinstance(subject.model, transformers.GenerationMixin):
        result = result, plain(subject.model.generate(*subject.args, max_new_tokens=3, do_sample=False))
    return result, subject.model.calls, cls.made, sorted(set(vars(cls)) - {"__doc__"})


# -- other instrumentations ------------------------------------------------------------------------------------------


OTHERS_WRAP = (
    (transformers.TextGenerationPipeline, "__call__"),
    (transformers.GenerationMixin, "generate"),
    (transformers.LlamaForCausalLM, "forward"),
)


@contextlib.contextmanager
def other_instrumentation(name: str) -> Iterator[InMemorySpanExporter]:
    """Another instrumentation on ``TextGenerationPipeline.__call__``, and what it records."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    owner = transformers.TextGenerationPipeline
    before = vars(owner)["__call__"]
    undo = _OTHERS[name](provider)
    assert vars(owner)["__call__"] is not before
    try:
        yield exporter
    finally:
        undo()


def _openllmetry(provider: TracerProvider) -> Callable[[], None]:
    module = importlib.import_module("opentelemetry.instrumentation.transformers")
    instrumentor = module.TransformersInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    return instrumentor.uninstrument  # type: ignore[no-any-return]


def _openlit(provider: TracerProvider) -> Callable[[], None]:
    module = importlib.import_module("openlit.instrumentation.transformers")
    instrumentor = module.TransformersInstrumentor()
    importlib.import_module("openlit._config").OpenlitConfig.reset_to_defaults()
    with unittest.mock.patch("opentelemetry.trace.get_tracer", provider.get_tracer):  # it takes the global one
        instrumentor.instrument(disable_metrics=True, skip_dep_check=True)
    wrapper = vars(transformers.TextGenerationPipeline)["__call__"]

    def undo() -> None:  # it has no way of its own
        instrumentor.uninstrument()
        if vars(transformers.TextGenerationPipeline)["__call__"] is wrapper:
            transformers.TextGenerationPipeline.__call__ = wrapper.__wrapped__

    return undo


def _wrapt(provider: TracerProvider) -> Callable[[], None]:
    """One like most: wrapt's function wrappers on a pipeline, ``generate``, the call and the forward of models."""
    tracer = provider.get_tracer("other")

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        with tracer.start_as_current_span(wrapped.__name__):
            return wrapped(*args, **kwargs)

    originals = [(owner, name, vars(owner)[name]) for owner, name in OTHERS_WRAP]
    for owner, name in OTHERS_WRAP:
        wrapt.wrap_function_wrapper(owner, name, wrapper)
    wrappers = [vars(owner)[name] for owner, name in OTHERS_WRAP]

    def undo() -> None:
        for (owner, name, original), ours in zip(originals, wrappers, strict=True):
            if vars(owner)[name] is ours:
                setattr(owner, name, original)

    return undo


_OTHERS = {"openllmetry": _openllmetry, "openlit": _openlit, "wrapt": _wrapt}


def other_first(name: str) -> Check:
    """The other instrumentation is there already, and goes first."""

    def check(subject: Subject) -> Generator[None, None, Any]:
        with other_instrumentation(name) as exporter:
            yield
            result = subject(), [span.name for span in exporter.get_finished_spans()]
        return result, subject()

    return check


def other_last(name: str) -> Check:
    """The other instrumentation comes over ours, and stays when we go."""

    def check(subject: Subject) -> Any:
        with other_instrumentation(name) as exporter:
            result = subject(), [span.name for span in exporter.get_finished_spans()]
            gone()
            after = subject(), [span.name for span in exporter.get_finished_spans()]
        return result, after, subject()

    return check


# -- uninstrumented --------------------------------------------------------------------------------------------------


def is_there() -> bool:
    """Whether Inferspan is there."""
    return bool(InferspanInstrumentor().is_instrumented_by_opentelemetry)


def gone() -> None:
    """Inferspan goes, if it is there."""
    if is_there():
        inferspan.uninstrument()


def gone_meanwhile(subject: Subject) -> Any:
    """Inferspan goes while another thread is inside the call."""
    inside, go_on = threading.Event(), threading.Event()
    results: list[Any] = []

    def wait(*_: Any) -> None:
        inside.set()
        assert go_on.wait(WAIT_S)

    handle = next(subject.root.children()).register_forward_hook(wait)
    thread = threading.Thread(target=lambda: results.append(subject()), daemon=True)
    thread.start()
    assert inside.wait(WAIT_S)
    gone()
    go_on.set()
    thread.join(WAIT_S)
    handle.remove()
    return results, subject()


def generation_gone_meanwhile(subject: Subject) -> Any:
    generate = Subject(subject.model.generate, *subject.args, max_new_tokens=4, do_sample=False)
    generate.__class__ = type("Generating", (Subject,), {"root": subject.model})
    return gone_meanwhile(generate)


def put_back(subject: Subject) -> Generator[None, None, Any]:
    """Every class is as it was, to the identity of what it holds."""
    classes = [*type(subject.model).__mro__[:-1], *type(subject.root).__mro__[:-1]]
    before = [dict(vars(cls)) for cls in classes]
    yield
    subject()
    gone()
    changed = [
        (cls.__name__, name)
        for cls, held in zip(classes, before, strict=True)
        for name in {**held, **vars(cls)}
        if held.get(name) is not vars(cls).get(name) and name not in ("__abstractmethods__", "_abc_impl")
    ]
    return changed, subject()
