"""Real classes of torch and transformers around models that compute next to nothing, for thousands of inferences.

Whatever runs a model here may be given a ``stamp``: called inside the first forward of each inference, where the root
span is current, so that a test or a benchmark can put its own number on that span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

# generate() of transformers 4.57 imports it: a fork in the midst of that leaves Python's lock of the module held
import torch.distributed.fsdp
import transformers
from transformers.modeling_outputs import CausalLMOutputWithPast

VOCABULARY = 16
FIRST = 3
"""The token that is always generated."""

_stamp: ContextVar[Callable[[], None] | None] = ContextVar("cheap_stamp", default=None)


@contextmanager
def stamped(stamp: Callable[[], None]) -> Iterator[None]:
    """In here the forwards of cheap models call ``stamp``, in this context."""
    token = _stamp.set(stamp)
    try:
        yield
    finally:
        _stamp.reset(token)


def _touch() -> None:
    stamp = _stamp.get()
    if stamp is not None:
        stamp()


class Cheap(torch.nn.Module):
    """A plain module. It raises the exception that it is given in place of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.layers = torch.nn.ModuleList([torch.nn.Identity()])

    def forward(self, x: Any) -> Any:
        _touch()
        if isinstance(x, BaseException):
            raise x
        return x * self.scale


class CheapConfig(transformers.PretrainedConfig):
    model_type = "cheap"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, **options})
        self.vocab_size = VOCABULARY
        self.hidden_size = 4
        self.num_hidden_layers = 1
        self.num_attention_heads = 1


class CheapModel(transformers.PreTrainedModel):
    """Behind :class:`CheapPipeline`."""

    config_class = CheapConfig

    def __init__(self, config: CheapConfig) -> None:
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class CheapLM(transformers.PreTrainedModel, transformers.GenerationMixin):
    """Generates the token FIRST, again and again, without a cache. ``fails_at``: the forward that raises."""

    config_class = CheapConfig
    main_input_name = "input_ids"
    _supports_cache_class = True

    def __init__(self, config: CheapConfig) -> None:
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))
        logits = torch.zeros(1, 1, VOCABULARY)
        logits[..., FIRST] = 1.0
        self.register_buffer("logits", logits, persistent=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, fails_at: Any = None, **_: Any) -> CausalLMOutputWithPast:
        _touch()
        if fails_at is not None and fails_at.due():
            raise fails_at.error
        return CausalLMOutputWithPast(logits=self.logits.expand(*input_ids.shape, VOCABULARY))

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "fails_at": kwargs.get("fails_at")}

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        pass


class FailsAt:
    """An exception for the n-th forward, from 0."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.left, self.error = step, error

    def due(self) -> bool:
        self.left -= 1
        return self.left < 0


class CheapPipeline(transformers.Pipeline):
    """Items are numbers, or an exception and the phase that it is raised in."""

    _load_tokenizer = False

    def _sanitize_parameters(self, **_: Any) -> Any:
        return {}, {}, {}

    def preprocess(self, item: Any) -> dict[str, Any]:
        _touch()
        self._fail(item, "preprocess")
        return {"item": item, "x": torch.ones(1)}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self._fail(inputs["item"], "forward")
        return {"item": inputs["item"], "x": self.model(inputs["x"])}

    def postprocess(self, outputs: dict[str, Any]) -> Any:
        self._fail(outputs["item"], "postprocess")
        return outputs["item"]

    @staticmethod
    def _fail(item: Any, phase: str) -> None:
        if isinstance(item, tuple) and item[0] == phase:
            raise item[1]


def module() -> Cheap:
    """In eval mode, so that its calls are inferences."""
    return Cheap().eval()


def language_model() -> CheapLM:
    return CheapLM(CheapConfig()).eval()


def pipeline() -> CheapPipeline:
    return CheapPipeline(CheapModel(CheapConfig()).eval(), task="cheap", device="cpu")


def generate(
    model: CheapLM, tokens: int, prompt: int = 2, fails_at: FailsAt | None = None, **options: Any
) -> torch.Tensor:
    """Ids of the prompt and of so many new tokens."""
    ids = torch.full((1, prompt), FIRST)
    if fails_at is not None:
        options["fails_at"] = fails_at
    return model.generate(ids, max_new_tokens=tokens, do_sample=False, use_cache=False, **options)


def generate_batch(model: CheapLM, requests: int, tokens: int) -> dict[str, Any]:
    """So many requests at once to a manager of continuous batching."""
    is_v4 = transformers.__version__.startswith("4.")
    sizes = {"num_blocks": 512, "max_batch_tokens": 256}
    ids = {"do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    options: dict[str, Any] = {"generation_config": transformers.GenerationConfig(**ids, **(sizes if is_v4 else {}))}
    if is_v4:
        from transformers.generation.continuous_batching import cache

        model.set_attn_implementation("sdpa_paged")
        # it cannot read how much memory a CPU has
        cache.get_device_and_memory_breakdown = lambda: (torch.device("cpu"), 2**30, 0, 0)
    else:
        options["continuous_batching_config"] = transformers.ContinuousBatchingConfig(page_size=16, **sizes)
    prompts = [[FIRST] * 3 for _ in range(requests)]
    return model.generate_batch(prompts, progress_bar=False, max_new_tokens=tokens, **options)
