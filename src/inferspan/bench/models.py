"""Models of transformers: as a pipeline, or with ``generate()`` called by hand."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import inferspan
from inferspan import semconv
from inferspan.bench.results import Scalar
from inferspan.bench.specification import Specification, Target, TargetError
from inferspan.bench.tasks import TASKS, task_of
from inferspan.bench.workload import WorkloadError, texts, words_of

__all__ = ["load"]

_GENERATING = ("text-generation", "text2text-generation", "summarization", "translation")
_DYNAMIC_INT8 = "dynamic-int8"
_DEFAULT_LENGTH = 128
_STREAM_S = 600.0


def load(specification: Specification) -> Target:
    """The model of a Hub id or a folder, changed as asked for.

    Raises:
        TargetError: there is no such folder, or it cannot be changed so. Libraries raise what they like.
    """
    import torch
    import transformers

    name = specification.name
    if not os.path.isdir(name) and (os.path.isabs(name) or name.startswith((".", "~"))):
        raise TargetError(f"{name}: there is no such folder")
    options = _options(specification, torch)
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
    return _Generate(pipe, facts) if specification.direct else _Pipeline(pipe, facts)


def _options(specification: Specification, torch: Any) -> dict[str, Any]:
    """Keywords for ``pipeline()``."""
    options: dict[str, Any] = {}
    if specification.dtype is not None:
        dtype = getattr(torch, specification.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise TargetError(f"dtype {specification.dtype!r} is none of torch's: float32, bfloat16, float16, …")
        options["dtype"] = dtype
    if specification.attention is not None:
        options["model_kwargs"] = {"attn_implementation": specification.attention}
    if specification.quantize not in (None, _DYNAMIC_INT8):
        raise TargetError(f"quantize {specification.quantize!r} is not one of {_DYNAMIC_INT8}")
    if specification.device is not None:
        options["device"] = specification.device
    elif specification.quantize is not None:
        options["device"] = "cpu"  # its kernels are the CPU's
    return options


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
    architectures = config.architectures or ()
    task = task_of(architectures)
    if task is None:
        named = ", ".join(architectures) or "a configuration without an architecture"
        raise TargetError(f"which task {named} is for is not known: add --pipeline TASK")
    return task


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
