"""What is measured: a pipeline, ``generate()``, a torch module, or any callable; loaded as its specification says.

A specification is ``NAME[,KEY=VALUE]…``: a Hub id or a folder, or ``module:function`` for a function that makes the
callable, with the keys of :class:`Specification`. A target is called with a batch of requests at a time.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import importlib
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import inferspan
from inferspan import semconv
from inferspan.bench.results import Scalar
from inferspan.bench.workload import WORDS, WorkloadError, texts, words_of

__all__ = ["Specification", "Target", "TargetError", "load", "parse"]

TASKS = ("text-generation", "text-classification", "feature-extraction", "token-classification", "fill-mask")
"""Tasks of pipelines whose requests can be made here; any other needs a file of requests."""
_TASK_OF_ENDING = {
    "CausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "MaskedLM": "fill-mask",
    "Model": "feature-extraction",
}
_GENERATING = ("text-generation", "text2text-generation", "summarization", "translation")
_DYNAMIC_INT8 = "dynamic-int8"
_QUANTIZATIONS = (_DYNAMIC_INT8,)
_DEFAULT_LENGTH = 128
_STREAM_S = 600.0
_FORWARD = "forward"
"""What Inferspan calls the operation of a model that is called directly."""


class TargetError(Exception):
    """A target that cannot be loaded, or not be called as asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Specification:
    """Which target, and how it is loaded. ``None``: as the library chooses."""

    name: str
    task: str | None = None
    direct: bool = False
    """``tokenizer``, ``generate()`` and ``decode`` by hand in place of a pipeline."""
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    compile: str | None = None
    attention: str | None = None
    revision: str | None = None

    @property
    def is_callable(self) -> bool:
        module, _, function = self.name.partition(":")
        return bool(function) and all(part.isidentifier() for part in (*module.split("."), *function.split(".")))

    @property
    def label(self) -> str:
        """Short: the last part of the name, and what is not the default."""
        last = self.name if self.is_callable else os.path.basename(os.path.normpath(self.name))
        ways = [self.dtype, self.quantize, self.attention, self.compile and f"compile {self.compile}", self.revision]
        return " ".join([last, *(way for way in ways if way)])


class Target(Protocol):
    """Something that can be asked."""

    kind: str
    task: str | None
    model: dict[str, Scalar]
    generates: bool

    def requests(self, input_tokens: int | None, output_tokens: int | None, count: int, seed: int) -> Sequence[Any]:
        """As many requests, made here, of this length."""
        ...

    def caller(self, input_tokens: int | None, output_tokens: int | None, stream: bool) -> Callable[[list[Any]], Any]:
        """What takes one batch of requests."""
        ...


def parse(text: str, first: Specification) -> Specification:
    """The specification of another target, beside the first: ``NAME[,KEY=VALUE]…``.

    Without a name it is the first one with these changes; with one, only task, device and way of calling are the
    first one's. A value of ``none`` sets a key back.

    Raises:
        TargetError: a key that is not known.
    """
    parts = text.split(",")
    name = "" if "=" in parts[0] else parts.pop(0)
    start = first if not name else Specification(name, first.task, first.direct, first.device)
    allowed = [field.name for field in dataclasses.fields(Specification) if field.name not in ("name", "direct")]
    changes: dict[str, str | None] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or key not in allowed:
            raise TargetError(f"{text!r}: {part!r} is not KEY=VALUE (keys: {', '.join(allowed)})")
        changes[key] = None if value.lower() == "none" else value
    return dataclasses.replace(start, **changes)  # type: ignore[arg-type]  # the keys are those of strings


def load(specification: Specification) -> Target:
    """Load it. What is loaded is in evaluation mode.

    Raises:
        TargetError: it cannot be loaded; the text says why.
    """
    try:
        return _load_callable(specification) if specification.is_callable else _load_model(specification)
    except TargetError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise TargetError(f"{specification.name} cannot be loaded: {type(error).__name__}: {lines[0]}") from error


# -- models of transformers --------------------------------------------------------------------------------------------


def _load_model(specification: Specification) -> Target:
    import torch
    import transformers

    name = specification.name
    if not os.path.isdir(name) and (os.path.isabs(name) or name.startswith((".", "~"))):
        raise TargetError(f"{name}: there is no such folder")
    options: dict[str, Any] = {}
    if specification.dtype is not None:
        dtype = getattr(torch, specification.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise TargetError(f"dtype {specification.dtype!r} is none of torch's: float32, bfloat16, float16, …")
        options["dtype"] = dtype
    if specification.attention is not None:
        options["model_kwargs"] = {"attn_implementation": specification.attention}
    if specification.quantize is not None and specification.quantize not in _QUANTIZATIONS:
        raise TargetError(f"quantize {specification.quantize!r} is not one of {', '.join(_QUANTIZATIONS)}")
    if specification.device is not None:
        options["device"] = specification.device
    elif specification.quantize == _DYNAMIC_INT8:
        options["device"] = "cpu"  # its kernels are the CPU's
    task = specification.task or _task(transformers.AutoConfig.from_pretrained(name, revision=specification.revision))
    pipe = transformers.pipeline(task, model=name, revision=specification.revision, **options)
    if pipe.tokenizer is not None and pipe.tokenizer.pad_token is None:
        pipe.tokenizer.pad_token = pipe.tokenizer.eos_token  # what batches of generation usually do
    if task == "text-generation":
        pipe.tokenizer.padding_side = "left"
    pipe.model.eval()
    facts = _facts(pipe.model)
    facts["digest"] = _digest(Path(name)) if os.path.isdir(name) else None
    if specification.quantize == _DYNAMIC_INT8:
        pipe.model = _dynamic_int8(pipe.model)
        facts["quantization"] = _DYNAMIC_INT8
        del facts["size_bytes"]  # which torch does not count of packed weights
    if specification.compile is not None:
        pipe.model.forward = torch.compile(pipe.model.forward, mode=specification.compile)
        facts["compile"] = specification.compile
    target: Target = _Generate(pipe, facts) if specification.direct else _Pipeline(pipe, facts)
    return target


class _Pipeline:
    """A pipeline of transformers, called with a list."""

    kind = "pipeline"

    def __init__(self, pipe: Any, facts: Mapping[str, Scalar]) -> None:
        self._pipe = pipe
        self.task: str | None = pipe.task
        self.generates = pipe.task in _GENERATING
        self.model: dict[str, Scalar] = {name: value for name, value in facts.items() if value is not None}

    def requests(self, input_tokens: int | None, output_tokens: int | None, count: int, seed: int) -> Sequence[Any]:
        tokenizer = self._pipe.tokenizer
        if self.task not in TASKS or tokenizer is None:
            raise WorkloadError(f"requests for {self.task} cannot be made here: give them with --data")
        length = self._length(input_tokens, output_tokens)
        words = words_of(tokenizer, seed)
        if self.task != "fill-mask":
            return texts(lambda text: len(tokenizer(text).input_ids), words, length, count, seed)
        mask = tokenizer.mask_token
        found = texts(lambda text: len(tokenizer(f"{text} {mask}").input_ids), words, length, count, seed)
        return [f"{text} {mask}" for text in found]

    def caller(self, input_tokens: int | None, output_tokens: int | None, stream: bool) -> Callable[[list[Any]], Any]:
        options: dict[str, Any] = {}
        if self.generates:
            options = _generation(output_tokens)
        if stream:
            return lambda batch: _streamed(self._pipe.tokenizer, lambda more: self._pipe(batch[0], **options, **more))
        return lambda batch: self._pipe(batch, batch_size=len(batch), **options)

    def _length(self, input_tokens: int | None, output_tokens: int | None) -> int:
        """Tokens of a request, that fit with those to come."""
        most = min(
            (
                value
                for value in (
                    self._pipe.tokenizer.model_max_length,
                    getattr(self._pipe.model.config, "max_position_embeddings", None),
                )
                if value
            ),
        )
        more = (output_tokens or 0) if self.generates else 0
        if input_tokens is None:
            return int(min(_DEFAULT_LENGTH, most - more))
        if input_tokens + more > most:
            of_output = f" and {more} output tokens" if more else ""
            raise WorkloadError(f"{input_tokens} input tokens{of_output} are more than the model's {most} positions")
        return input_tokens


class _Generate(_Pipeline):
    """The same model without the pipeline: tokenizer, ``generate()`` and ``decode``."""

    kind = "generate"

    def __init__(self, pipe: Any, facts: Mapping[str, Scalar]) -> None:
        super().__init__(pipe, facts)
        if not self.generates:
            raise TargetError(f"--generate: a model for {self.task} does not generate")

    def caller(self, input_tokens: int | None, output_tokens: int | None, stream: bool) -> Callable[[list[Any]], Any]:
        tokenizer, model = self._pipe.tokenizer, self._pipe.model
        options = _generation(output_tokens)

        def call(batch: list[Any], more: Mapping[str, Any]) -> Any:
            with inferspan.inference(
                _named(semconv.TEXT_COMPLETION, model), model=model, operation=semconv.TEXT_COMPLETION
            ):
                encoded = tokenizer(batch, return_tensors="pt", padding=True).to(model.device)
                inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
                result = model.generate(**inputs, **options, **more, pad_token_id=tokenizer.pad_token_id)
                return tokenizer.batch_decode(result, skip_special_tokens=True)

        if stream:
            return lambda batch: _streamed(tokenizer, lambda more: call(batch, more))
        return lambda batch: call(batch, {})


def _generation(output_tokens: int | None) -> dict[str, Any]:
    """Greedy, and exactly so many tokens: what ends earlier by chance would be another workload each time."""
    if output_tokens is None:
        return {"do_sample": False}
    return {"max_new_tokens": output_tokens, "min_new_tokens": output_tokens, "do_sample": False}


def _streamed(tokenizer: Any, call: Callable[[Mapping[str, Any]], Any]) -> Any:
    """``call`` with a streamer, whose pieces a thread takes as they come, as the one that serves them would."""
    import transformers

    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=_STREAM_S)
    reader = threading.Thread(target=lambda: [None for _ in streamer], name="inferspan-bench-reader", daemon=True)
    reader.start()
    try:
        return call({"streamer": streamer})
    finally:
        streamer.end()  # a second end is never read; without one a reader would wait for ever after an error
        reader.join(timeout=_STREAM_S)


def _task(config: Any) -> str:
    for architecture in config.architectures or ():
        for ending, task in _TASK_OF_ENDING.items():
            if architecture.endswith(ending):
                return task
        raise TargetError(f"which task {architecture} is for cannot be told: add --pipeline TASK")
    raise TargetError("the model's configuration names no architecture: add --pipeline TASK")


def _named(operation: str, model: Any) -> str:
    name = os.path.basename(os.path.normpath(str(getattr(model.config, "_name_or_path", "")))) or type(model).__name__
    return f"{operation} {name}"


def _facts(model: Any) -> dict[str, Scalar]:
    """What the model is, under the names of its ``load`` span where that has them."""
    config = model.config
    facts: dict[str, Scalar] = {
        "class": type(model).__name__,
        "type": getattr(config, "model_type", None),
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
        "device": str(model.device),
        "parameters": model.num_parameters(),
        "size_bytes": model.get_memory_footprint(),
    }
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = getattr(quantization, "quant_method", None)
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else method
        facts["quantization"] = str(getattr(method, "value", method))
    return facts


def _digest(folder: Path) -> str:
    """Of a local model, which has no revision: its configuration, and names and sizes of its weights."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".model"):
            found.update(path.name.encode() + path.read_bytes())
        elif path.is_file():
            found.update(f"{path.name} {path.stat().st_size}".encode())
    return found.hexdigest()[:16]


def _dynamic_int8(model: Any) -> Any:
    """Weights of all linears in int8, activations quantised as they come: torch's own, on the CPU.

    GPT-2 keeps its weights in ``Conv1D``, a transposed linear, which torch does not know: it is made a linear first.
    """
    import torch
    from torch.ao.quantization import quantize_dynamic
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                linear = torch.nn.Linear(*child.weight.shape, dtype=child.weight.dtype)
                linear.weight = torch.nn.Parameter(child.weight.detach().t().contiguous(), requires_grad=False)
                linear.bias = child.bias
                setattr(parent, name, linear)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao, which has no such kernels for eager mode
        return quantize_dynamic(model.eval(), {torch.nn.Linear}, dtype=torch.qint8)


# -- callables ---------------------------------------------------------------------------------------------------------


def _load_callable(specification: Specification) -> Target:
    module_name, _, function = specification.name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    made: Any = importlib.import_module(module_name)
    for part in function.split("."):
        made = getattr(made, part)
    made = made()
    inputs = None
    if isinstance(made, tuple) and len(made) == 2:
        made, inputs = made
    if not callable(made) or not (inputs is None or callable(inputs)):
        raise TargetError(
            f"{specification.name}() gave {type(made).__name__}, and should give a callable, or a module and a "
            "function that makes its inputs"
        )
    return _Callable(specification, made, inputs, function)


class _Callable:
    """Anything: ``call(batch)`` with a list of requests, ``call()``, or a module with what makes its inputs."""

    kind = "callable"
    task: str | None = None
    generates = False

    def __init__(self, specification: Specification, call: Any, inputs: Any, name: str) -> None:
        torch = sys.modules.get("torch")
        self._is_module = torch is not None and isinstance(call, torch.nn.Module)
        if self._is_module:
            self._prepare(torch, call, specification)
        if self._is_module and inputs is None:
            raise TargetError(
                f"{specification.name}() gave a torch module alone: nobody knows its inputs. Return a tuple of it and "
                "of inputs(batch_size, length), which gives a tensor, a tuple or a dict"
            )
        self._call, self._inputs, self._name = call, inputs, name
        self._takes_batch = not self._is_module and bool(inspect.signature(call).parameters)
        self.model: dict[str, Scalar] = self._module_facts(call) if self._is_module else {}

    @staticmethod
    def _prepare(torch: Any, module: Any, specification: Specification) -> None:
        if specification.quantize or specification.attention or specification.revision or specification.task:
            raise TargetError("a callable takes dtype, device and compile, nothing else: do the rest where it is made")
        module.eval()
        if specification.dtype or specification.device:
            dtype = getattr(torch, specification.dtype) if specification.dtype else None
            module.to(device=specification.device, dtype=dtype)
        if specification.compile:
            module.compile(mode=specification.compile)

    @staticmethod
    def _module_facts(module: Any) -> dict[str, Scalar]:
        parameters = list(module.parameters())
        facts: dict[str, Scalar] = {"class": type(module).__name__, "parameters": sum(p.numel() for p in parameters)}
        if parameters:
            facts["dtype"] = str(parameters[0].dtype).removeprefix("torch.")
            facts["device"] = str(parameters[0].device)
        facts["size_bytes"] = sum(p.numel() * p.element_size() for p in parameters)
        return facts

    def requests(self, input_tokens: int | None, output_tokens: int | None, count: int, seed: int) -> Sequence[Any]:
        if self._is_module or not self._takes_batch:
            return [None]
        return texts(lambda text: len(text.split()), WORDS, input_tokens or 16, count, seed)

    def caller(self, input_tokens: int | None, output_tokens: int | None, stream: bool) -> Callable[[list[Any]], Any]:
        if stream:
            raise WorkloadError("--stream is for models that generate")
        call = self._call

        if self._is_module:
            return self._module_caller(call, input_tokens)
        name, takes_batch = self._name, self._takes_batch

        def run(batch: list[Any]) -> Any:
            if not takes_batch and len(batch) > 1:
                raise WorkloadError(f"{name}() takes no requests, so there is nothing to make batches of")
            with inferspan.inference(name):
                return call(batch) if takes_batch else call()

        return run

    def _module_caller(self, module: Any, length: int | None) -> Callable[[list[Any]], Any]:
        import torch

        made: dict[int, Any] = {}

        def run(batch: list[Any]) -> Any:
            inputs = made.get(len(batch))
            if inputs is None:
                inputs = made[len(batch)] = self._inputs(len(batch), length)
            with torch.inference_mode(), inferspan.inference(_FORWARD, model=module):
                if isinstance(inputs, Mapping):
                    return module(**inputs)
                return module(*inputs) if isinstance(inputs, tuple) else module(inputs)

        return run


def free() -> None:
    """Give back what nobody holds any more, before the next configuration or after an allocation that failed."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
