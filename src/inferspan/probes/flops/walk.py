"""FLOPs of an inference: a model's matrix products listed once, and the shapes of each call.

What is counted is what ``torch.utils.flop_counter.FlopCounterMode`` counts with eager attention: two operations for
each multiply-add of linear layers, convolutions and attention, at all positions of the batch, padding and what a
causal mask hides included. A fused attention kernel that skips the masked half does less. Norms, activations,
softmax, sampling and embeddings are no matrix products and do not count.

:func:`take_inventory` (once for each model) and :func:`read_shapes` (for each call) run on the calling thread and read
attributes and shapes only: no operator runs, nothing is allocated, no content is looked at, no tensor is kept.
``Inventory.forward`` and ``Inventory.generation`` make numbers of the two later, anywhere.

This is not a trace of the model: which module sees which positions is read from the names and classes that
transformers gives them. What does not fit is left out, and ``exact`` is then false: see docs/flops.md.
"""

from __future__ import annotations

import inspect
import math
import re
from functools import lru_cache
from typing import Any, NamedTuple

from inferspan.integrations.torch.describe import is_of_library, matrix_of, written_class
from inferspan.probes.flops.inventory import Convolution, Inventory, Stack
from inferspan.probes.flops.shapes import int_of, shape_of

METHOD = "linear_inventory"

# Names of submodules, and what they say of all that lies below.
_ROLES = {
    "encoder": re.compile(r"encoder"),
    "decoder": re.compile(r"decoder"),
    "tower": re.compile(r"\w*(vision|visual|image|audio|speech|multi_?modal|mm_proj)\w*"),
    "row": re.compile(r"pooler|seq_relationship|sequence_summary|(text|visual|image)_projection"),
    "cross": re.compile(r"cross_?att\w*|encoder_attn|EncDecAttention"),
    "again": re.compile(r"enc_to_dec_proj"),
    "source": re.compile(r"[kv]|[kv]_proj|key|value|c_attn|[kv]_lin|kv_proj|(key|value)_proj|to_[kv]"),
    "branch": re.compile(r"shortcut|downsample"),
}

# Names of classes: those that classify what they have pooled; attention; what is not a product of all pairs.
_CLASSIFIES = re.compile(
    r"(?<!Decoder)For(Sequence|Image|Audio|Video)\w*Classification|ForMultipleChoice|ForNextSentence"
)
_ATTENTION = re.compile(r"Attention|Attn")
_OTHER = re.compile(
    r"(Linear|Lightning|LSH|Local|Sparse|Window|Disentangled|Deformable|Pool|Ngram)\w*Att|Delta|Mamba|Rwkv|Indexer"
    r"|^(CpmAnt|DiffLlama|LED|Longformer|Luke|MarkupLM|Mra|Nezha|OpenLlama|SuperGlue)|ObjectDetection"
)
_EXPERT = re.compile(r"(expert_)?\d+")
_ROUTER = re.compile(r"Router|Gat(e|ing)")

# Names of parameters: of tokens put before the others; of what is only added; of state-space and other mathematics.
_EXTRA_TOKEN = re.compile(r"(cls|class|dist\w*|reg\w*)_(token|embedding)s?")
_ADDED = re.compile(r"token|embed|pos|latent|bias|scale|table|mask|cls|quer(y|ies)$")
_OTHER_PARAMETER = re.compile(r"A_log|dt_bias|lambda_\w+")

_DECODES = ("prepare_inputs_for_generation", "_prefill", "_sample", "_beam_search")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_HEAD_SIZES = ("qk_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
_WIDTHS = ("embed_dim", "hidden_size")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "num_selected_experts", "moe_topk", "moe_top_k", "top_k")
# Others (torchao's, DTensor) do not show by shape and dtype how many bytes they take here.
_PLAIN_TENSORS = frozenset(("Parameter", "Tensor", "Params4bit", "Int8Params"))


def take_inventory(model: Any) -> Inventory | None:
    """The inventory of a model, or of what ``torch.compile`` made of it; ``None`` where there is nothing to count."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(getattr(model, "_modules", None), dict):
        return None
    walk = _Walk(model)
    walk.visit(model, _Place(walk.main))
    main, side, feeds_decoder = walk.main, walk.side, walk.is_encoder_decoder
    if not main.layers and side.layers:  # an encoder or a tower alone, with its head
        side.token, side.row, side.head = side.token + main.token, side.row + main.row, side.head + main.head
        side.weight_bytes += main.weight_bytes
        main, side, feeds_decoder = side, Stack(), False
    if not (main.token or main.row or main.head or main.chain):
        return None
    kind = written_class(model).__name__
    is_known = any(base.__module__.partition(".")[0] == "transformers" for base in type(model).__mro__)
    if walk.is_staged or (main.chain and not main.layers and is_known and not kind.startswith("ResNet")):
        return None  # positions that are merged on the way, or branches of convolutions, are not shown by names
    # layers that run more than once, or by something else than attention, show in their number
    is_plain = (
        side.layers > 0 if feeds_decoder else main.layers == getattr(walk.config, "num_hidden_layers", main.layers)
    )
    generates = getattr(model, "can_generate", None)
    return Inventory(
        main=main,
        encoder=side if feeds_decoder else None,
        tower=side if side.layers and not feeds_decoder else None,
        exact=walk.exact and is_known and is_plain and _is_of_libraries(model),
        parameters=_parameters(type(model)) if is_known else (),
        modules=frozenset(map(id, model.modules())),
        shards=int_of(getattr(model, "tp_size", None)) or 1,
        weight_bytes=main.weight_bytes if walk.sizes_known else None,
        kv=walk.kv if walk.kv and callable(generates) and generates() else None,
        source_kv=walk.source_kv,
    )


class _Place(NamedTuple):
    """What a module is counted to: a stack, for each what (a field of it), how many times."""

    stack: Stack
    per: str = "token"
    times: int = 1
    on_branch: bool = False
    in_decoder: bool = False


class _Walk:
    """One pass over all modules. ``exact`` and ``sizes_known`` turn false where something is not understood."""

    def __init__(self, model: Any) -> None:
        config = getattr(model, "config", None)
        self.config = getattr(config, "text_config", None) or config
        self.is_encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        self.main, self.side = Stack(), Stack()
        self.kv: dict[int | None, int] = {}
        self.source_kv = 0
        self.exact = self.sizes_known = True
        self._model = model
        self._widths: dict[int, set[int]] = {}
        head = getattr(model, "get_output_embeddings", None)
        self._head = head() if callable(head) else None
        # what a classifier has beside its base model sees what was pooled
        self._base = None
        if _CLASSIFIES.search(type(model).__name__):
            names = (getattr(model, "base_model_prefix", None), "encoder")
            self._base = next((name for name in names if name in model._modules), None)
        # from a parameter: `model.dtype` raises StopIteration where there is none
        first = next(iter(model.parameters()), None)
        dtype = getattr(model, "dtype", None) if first is not None else None
        self._element_bytes = int_of(getattr(dtype, "itemsize", None)) or 0
        self._layer_types = getattr(self.config, "layer_types", None)
        windows = (int_of(getattr(self.config, name, None)) for name in ("sliding_window", "attention_chunk_size"))
        self._window = next(filter(None, windows), None)

    @property
    def is_staged(self) -> bool:
        """Whether layers behind convolutions grow wider, as they do where their positions become fewer (Swin)."""
        return any(stack.chain and len(self._widths.get(id(stack), ())) > 1 for stack in (self.main, self.side))

    def visit(self, module: Any, place: _Place) -> None:
        own, kind = module.__dict__, written_class(module).__name__
        children = own.get("_modules") or {}
        size = matrix_of(own)
        wraps_linear = any(matrix_of(child.__dict__) for child in children.values() if child is not None)
        if size and not wraps_linear:  # LoRA's layer has the sizes of the one that it wraps
            self._add(place, 2 * size[0] * size[1])
            self._weigh(own, place)
        elif "kernel_size" in own and "stride" in own and children.keys() <= {"parametrizations"}:
            self._count_convolution(own, place)
        elif "num_embeddings" in own and "embedding_dim" in own:
            place.stack.weight_bytes += own["embedding_dim"] * self._element_bytes
        else:
            self._count_parameters(own, kind, place)
            if _OTHER.search(kind):
                self.exact = False
            elif wraps_linear and _ATTENTION.search(kind):
                self._count_attention(own, place)
            for name, child in children.items():
                if child is not None:
                    self._visit_child(module, name, child, place)

    def _visit_child(self, parent: Any, name: str, child: Any, place: _Place) -> None:
        below = child.__dict__.get("_modules") or {}
        if name == "experts" and below and all(_EXPERT.fullmatch(key) for key in below):
            # one stands for all: each token goes to so many of them
            times = place.times * self._top_k(parent.__dict__)
            self.visit(next(iter(below.values())), place._replace(times=times))
        elif name in ("lora_A", "lora_B"):
            is_off = getattr(parent, "merged", False) or getattr(parent, "disable_adapters", False)
            for adapter in () if is_off else getattr(parent, "active_adapters", ()):
                if adapter in below:
                    self.visit(below[adapter], place)
                    # DoRA and others of its kind compute more than the two products
                    self.exact = self.exact and adapter not in (parent.__dict__.get("lora_variant") or ())
        else:
            self.visit(child, self._place_of(parent, name, child, place))

    def _place_of(self, parent: Any, name: str, child: Any, place: _Place) -> _Place:
        if child is self._head:
            return place._replace(per="head")
        if parent is self._model and self._base and name not in (self._base, "score", "projector", "dense"):
            place = place._replace(per="row")
        roles = _roles(name)
        if not roles:
            return place
        if "decoder" in roles:
            return place._replace(in_decoder=True)  # which may have an encoder's layers inside
        if (
            place.stack is self.main
            and not place.in_decoder
            and ("encoder" if self.is_encoder_decoder else "tower") in roles
        ):
            place = place._replace(stack=self.side)
        if "source" in roles and place.per == "cross":
            return place._replace(per="source")
        per = next((role for role in ("row", "cross", "again") if role in roles), place.per)
        return place._replace(per=per, on_branch=place.on_branch or "branch" in roles)

    def _add(self, place: _Place, flops: int) -> None:
        setattr(place.stack, place.per, getattr(place.stack, place.per) + flops * place.times)

    def _weigh(self, own: dict[str, Any], place: _Place, share: float = 1) -> None:
        if place.per == "source":  # not read again once its keys and values are cached
            return
        for tensor in (*(own.get("_parameters") or {}).values(), *(own.get("_buffers") or {}).values()):
            if tensor is not None:
                size = _bytes(tensor)
                self.sizes_known = self.sizes_known and size is not None
                place.stack.weight_bytes += int((size or 0) * place.times * share)

    def _count_convolution(self, own: dict[str, Any], place: _Place) -> None:
        """In front of the linear layers it is part of a chain, among them it runs at each position."""
        stack, step = place.stack, _convolution(own, place.on_branch)
        self._weigh(own, place)
        if not stack.token and (step.flops or stack.chain):
            stack.chain.append(step)
        elif len(step.kernel) == 1 and step.stride == (1,):
            self._add(place, step.flops)
        elif step.flops:
            self.exact = False

    def _count_parameters(self, own: dict[str, Any], kind: str, place: _Place) -> None:
        """Parameters that a module holds itself, other than a linear layer's or a convolution's."""
        share = 1.0
        for name, tensor in (own.get("_parameters") or {}).items():
            shape = shape_of(tensor) or ()
            if _EXTRA_TOKEN.fullmatch(name):
                place.stack.extra_tokens += shape[-2] if len(shape) > 1 else 1
            elif _OTHER_PARAMETER.fullmatch(name):
                self.exact = False
            elif len(shape) < 2 or _ADDED.search(name):
                continue
            elif "Expert" in kind and len(shape) == 3:
                # what transformers does not dispatch itself (Llama 4) sends each token to all
                everywhere = "gate_up_proj" in own["_parameters"] and "has_gate" not in own
                self.exact = self.exact and not everywhere
                top_k = shape[0] if everywhere else self._top_k(own)
                share = top_k / shape[0]
                self._add(place, 2 * math.prod(shape[1:]) * top_k)
            elif name == "in_proj_weight" or (name == "weight" and _ROUTER.search(kind)):
                self._add(place, 2 * math.prod(shape))
            else:
                self.exact = False
        self._weigh(own, place, share)

    def _top_k(self, own: dict[str, Any]) -> int:
        # a configuration's own top_k may be that of sampling
        found = _first_int(own, None, _TOP_K) or _first_int({}, self.config, _TOP_K[:-1])
        self.exact = self.exact and found is not None
        return found or 1

    def _count_attention(self, own: dict[str, Any], place: _Place) -> None:
        config = own.get("config") or self.config
        heads, size = _first_int(own, config, _HEADS), _first_int(own, config, _HEAD_SIZES)
        if heads and not size:
            size = (_first_int(own, config, _WIDTHS) or 0) // heads
        if not heads or not size:
            self.exact = False
            return
        both = size + (int_of(own.get("v_head_dim")) or size)
        stack, window = place.stack, self._window_of(own)
        kv_bytes = (_first_int(own, config, _KV_HEADS) or heads) * both * self._element_bytes
        if place.per == "cross":
            stack.source_pair += 2 * heads * both
            self.source_kv += kv_bytes
            return
        stack.layers += 1
        self._widths.setdefault(id(stack), set()).add(heads * both)
        stack.pairs[window] = stack.pairs.get(window, 0) + 2 * heads * both
        if stack is self.main:
            self.kv[window] = self.kv.get(window, 0) + kv_bytes

    def _window_of(self, own: dict[str, Any]) -> int | None:
        """The window of this layer's cache, which transformers makes by the kinds of layers in the configuration."""
        index = own.get("layer_idx")
        if self._window is None or not isinstance(index, int):
            return None
        if self._layer_types is None:
            return self._window
        kind = self._layer_types[index] if index < len(self._layer_types) else None
        return self._window if kind in ("sliding_attention", "chunked_attention") else None


@lru_cache(maxsize=1024)
def _roles(name: str) -> frozenset[str]:
    return frozenset(role for role, names in _ROLES.items() if names.fullmatch(name))


def _convolution(own: dict[str, Any], on_branch: bool) -> Convolution:
    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * 3

    kernel, padding, channels = each(own["kernel_size"]), own.get("padding", 0), own.get("in_channels", 0)
    if isinstance(padding, str):
        padding = tuple((size - 1) // 2 if padding == "same" else 0 for size in kernel)
    flops = 2 * channels * own.get("out_channels", 0) // own.get("groups", 1) * math.prod(kernel)
    stride, dilation = each(own["stride"]), each(own.get("dilation", 1))
    transposed = bool(own.get("transposed", False))
    return Convolution(flops, channels, kernel, stride, each(padding), dilation, transposed, on_branch)


def _bytes(tensor: Any) -> int | None:
    if type(tensor).__name__ not in _PLAIN_TENSORS:
        return None
    size: int = math.prod(tensor.shape) * tensor.dtype.itemsize
    scales = getattr(getattr(tensor, "quant_state", None), "absmax", None)  # bitsandbytes' 4-bit blocks
    return size if scales is None else size + int(math.prod(scales.shape) * scales.dtype.itemsize)


def _is_of_libraries(model: Any) -> bool:
    """Whether no module of the program's own computes, of which nobody knows how often it runs what it holds."""
    found = [module.__dict__.get("forward") or getattr(type(module), "forward", None) for module in model.modules()]
    found += [getattr(type(model), name, None) for name in _DECODES]
    return all(is_of_library(function) for function in found if function is not None)


def _parameters(cls: type) -> tuple[str, ...]:
    """Names of the parameters of the class's ``forward``."""
    try:
        return tuple(inspect.signature(cls.forward).parameters)[1:]  # type: ignore[attr-defined]
    except (TypeError, ValueError, AttributeError):
        return ()


def _first_int(own: dict[str, Any], config: Any, names: tuple[str, ...]) -> int | None:
    """The first of these names that the module itself has a number for, or else the configuration."""
    found = next((value for name in names if (value := int_of(own.get(name)))), None)
    return found or next((value for name in names if (value := int_of(getattr(config, name, None)))), None)
