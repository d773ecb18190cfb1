"""The inventory of modules made by hand, the shapes of calls, and sums in closed form against their steps."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from inferspan.probes.flops import walk
from inferspan.probes.flops.inventory import CallShapes, Flops, Inventory, Stack
from inferspan.probes.flops.shapes import read_shapes


def _inventory(model: nn.Module) -> Inventory:
    inventory = walk.take_inventory(model)
    assert inventory is not None
    return inventory


def _ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


# -- modules ---------------------------------------------------------------------------------------------------------


class Packed(nn.Module):
    """A quantised linear layer: two numbers in a byte, its sizes beside it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("qweight", torch.zeros(in_features * out_features // 2, 1, dtype=torch.uint8))


class Conv1D(nn.Module):
    """GPT-2's linear layer."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nx, self.nf = nx, nf
        self.weight = nn.Parameter(torch.zeros(nx, nf))


class LoraLinear(nn.Module):
    """As peft wraps a layer: its sizes are those of the layer inside."""

    def __init__(self, active: list[str], merged: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 16
        self.base_layer = nn.Linear(8, 16)
        self.lora_A = nn.ModuleDict({name: nn.Linear(8, 2, bias=False) for name in ("first", "second")})
        self.lora_B = nn.ModuleDict({name: nn.Linear(2, 16, bias=False) for name in ("first", "second")})
        self.active_adapters, self.merged = active, merged


class ExpertList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top_k = 3
        self.gate = nn.Linear(8, 10, bias=False)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(10))


class StackedExperts(nn.Module):
    """Expert weights as one parameter, dispatched by transformers 5."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts_per_tok, self.has_gate = 3, True
        self.gate_up_proj = nn.Parameter(torch.zeros(10, 32, 8))
        self.down_proj = nn.Parameter(torch.zeros(10, 8, 16))


@pytest.mark.parametrize(
    ("module", "flops_per_token"),
    [
        pytest.param(nn.Linear(8, 16), 2 * 8 * 16, id="linear"),
        pytest.param(Packed(8, 16), 2 * 8 * 16, id="quantised, by its logical sizes"),
        pytest.param(Conv1D(16, 8), 2 * 8 * 16, id="Conv1D of GPT-2"),
        pytest.param(LoraLinear(["first"]), 2 * (8 * 16 + 8 * 2 + 2 * 16), id="LoRA, the active adapter"),
        pytest.param(LoraLinear(["first", "second"]), 2 * (8 * 16 + 2 * (8 * 2 + 2 * 16)), id="LoRA, two"),
        pytest.param(LoraLinear(["first"], merged=True), 2 * 8 * 16, id="LoRA, merged"),
        pytest.param(ExpertList(), 2 * (8 * 10 + 3 * 8 * 8), id="list of experts, those that a token goes to"),
        pytest.param(StackedExperts(), 2 * 3 * (32 * 8 + 8 * 16), id="experts in one parameter"),
        pytest.param(nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 4)), 2 * 8 * 4, id="embedding"),
    ],
)
def test_a_module_counts_at_each_position(module: nn.Module, flops_per_token: int) -> None:
    inventory = _inventory(nn.Sequential(module))
    assert inventory.forward(CallShapes(rows=2, length=5)).count == 2 * 5 * flops_per_token


@pytest.mark.parametrize(
    ("module", "size"),
    [
        pytest.param(nn.Linear(8, 16), 4 * (8 * 16 + 16), id="float32"),
        pytest.param(nn.Linear(8, 16).bfloat16(), 2 * (8 * 16 + 16), id="bfloat16"),
        pytest.param(Packed(8, 16), 8 * 16 // 2, id="two in a byte"),
        pytest.param(StackedExperts(), 4 * 3 * (32 * 8 + 8 * 16), id="only active experts"),
    ],
)
def test_weight_bytes_are_what_a_step_reads(module: nn.Module, size: int) -> None:
    assert _inventory(nn.Sequential(module)).weight_bytes == size


class TorchaoTensor(torch.Tensor):
    """A tensor whose shape and dtype are those of what it stands for."""


def test_weight_bytes_are_absent_where_a_format_hides_them() -> None:
    linear = nn.Linear(8, 16)
    linear._parameters["weight"] = torch.zeros(16, 8).as_subclass(TorchaoTensor)

    inventory = _inventory(nn.Sequential(linear))
    assert inventory.weight_bytes is None
    assert inventory.forward(CallShapes(rows=1, length=3)).count == 3 * 2 * 8 * 16


@pytest.mark.parametrize(
    ("convolutions", "shape", "expected"),
    [
        pytest.param([nn.Conv2d(3, 8, 4, stride=4)], (2, 3, 32, 32), 2 * 64 * (2 * 3 * 8 * 16), id="patches"),
        pytest.param(
            [nn.Conv1d(16, 8, 3, padding=1), nn.Conv1d(8, 8, 3, stride=2, padding=1)],
            (1, 16, 100),
            100 * (2 * 16 * 8 * 3) + 50 * (2 * 8 * 8 * 3),
            id="one after the other",
        ),
        pytest.param(
            [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8)],
            (1, 3, 18, 18),
            256 * (2 * 3 * 8 * 9) + 36 * (2 * 8 * 9),
            id="pooling between, groups",
        ),
        pytest.param([nn.ConvTranspose1d(4, 2, 4, stride=2)], (3, 4, 10), 3 * 10 * (2 * 4 * 2 * 4), id="transposed"),
        pytest.param([nn.Conv3d(3, 4, 2, stride=2)], (1, 3, 4, 8, 8), 32 * (2 * 3 * 4 * 8), id="video"),
        pytest.param([nn.Conv3d(3, 4, 2, stride=2)], (32, 24), 32 * (2 * 3 * 4 * 8), id="patches that come flat"),
        pytest.param([nn.Conv1d(1, 4, 10, stride=5)], (2, 100), 2 * 19 * (2 * 4 * 10), id="raw audio"),
    ],
)
def test_convolutions_count_by_the_size_of_their_input(
    convolutions: list[nn.Module], shape: tuple[int, ...], expected: int
) -> None:
    inventory = _inventory(nn.Sequential(*convolutions))
    assert inventory.forward(CallShapes(rows=shape[0], media=shape)).count == expected


def test_what_is_not_understood_is_left_out_and_not_exact() -> None:
    inventory = _inventory(nn.Sequential(nn.LSTM(8, 8), nn.Linear(8, 4)))
    assert inventory.forward(CallShapes(rows=1, length=3)) == Flops(3 * 2 * 8 * 4, False)


@pytest.mark.parametrize(
    "model", [pytest.param(nn.LayerNorm(4), id="no matrix"), pytest.param(object(), id="no module")]
)
def test_without_anything_to_count_there_is_no_inventory(model: Any) -> None:
    assert walk.take_inventory(model) is None


# -- calls -----------------------------------------------------------------------------------------------------------


class Untouchable:
    """An input that may be evaluated lazily: any look at it fails."""

    def _fail(self, *args: Any) -> NoReturn:
        raise AssertionError("touched")

    __len__ = __bool__ = __iter__ = __getitem__ = __eq__ = _fail  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("args", "kwargs", "work"),
    [
        pytest.param((), {"input_ids": _ids(2, 7)}, CallShapes(2, 7), id="ids"),
        pytest.param((_ids(2, 7),), {}, CallShapes(2, 7), id="ids without a name"),
        pytest.param((), {"inputs": _ids(2, 7)}, CallShapes(2, 7), id="inputs of generate"),
        pytest.param((), {"inputs_embeds": torch.zeros(2, 7, 4)}, CallShapes(2, 7), id="embeddings"),
        pytest.param((), {"input_ids": _ids(2, 3, 7)}, CallShapes(6, 7), id="several choices a row"),
        pytest.param((torch.zeros(2, 3, 8, 8),), {}, CallShapes(2, media=(2, 3, 8, 8)), id="pixels without a name"),
        pytest.param((), {"input_features": torch.zeros(2, 4, 9)}, CallShapes(2, media=(2, 4, 9)), id="audio features"),
        pytest.param(
            (),
            {"input_ids": _ids(2, 7), "decoder_input_ids": _ids(2, 3)},
            CallShapes(2, 7, decoder_length=3),
            id="encoder and decoder",
        ),
        pytest.param(
            (),
            {"encoder_outputs": (torch.zeros(2, 7, 4),), "decoder_input_ids": _ids(2, 1)},
            CallShapes(2, decoder_length=1, source_length=7),
            id="encoded before",
        ),
        pytest.param((), {"input_ids": _ids(1, 7), "logits_to_keep": 2}, CallShapes(1, 7, keep=2), id="last logits"),
        pytest.param((), {"input_ids": _ids(1, 7), "logits_to_keep": 0}, CallShapes(1, 7), id="all logits"),
        pytest.param(
            (), {"input_ids": _ids(1, 7), "logits_to_keep": _ids(3)}, CallShapes(1, 7, keep=3), id="some logits"
        ),
        pytest.param((), {"input_ids": _ids(1, 7), "use_cache": False}, CallShapes(1, 7, cached=False), id="no cache"),
        pytest.param(
            (),
            {"input_ids": _ids(1, 1), "past_key_values": ((torch.zeros(1, 2, 5, 4),) * 2,)},
            CallShapes(1, 1, past=5, slides=False),
            id="cache as tuples",
        ),
        pytest.param(
            (), {"input_ids": _ids(1, 7), "extra": Untouchable()}, CallShapes(1, 7), id="something lazy beside"
        ),
        pytest.param((Untouchable(),), {}, None, id="something lazy alone"),
        pytest.param(("text",), {"input_ids": [[1, 2]]}, None, id="no tensor"),
    ],
)
def test_shapes_read_from_the_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], work: CallShapes | None) -> None:
    assert read_shapes(args, kwargs) == work


# -- sums ------------------------------------------------------------------------------------------------------------


def _numbers(encoder: Stack | None = None, **main: Any) -> Inventory:
    stack = Stack(token=1000, head=300, layers=1, **main)
    return Inventory(stack, encoder, None, True, (), frozenset(), 1, None, {None: 10, 4: 1})


@pytest.mark.parametrize("length", [1, 3, 20])
@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(
    "inventory",
    [
        pytest.param(_numbers(pairs={None: 7}), id="attention to all"),
        pytest.param(_numbers(pairs={None: 7, 5: 3}), id="windows"),
    ],
)
def test_generation_is_the_sum_of_its_steps(inventory: Inventory, steps: int, length: int) -> None:
    prefill = inventory.forward(CallShapes(rows=2, length=length, keep=1))
    each = [inventory.forward(CallShapes(rows=2, length=1, past=length + step)).count for step in range(steps - 1)]
    first = CallShapes(rows=2, length=length, keep=1)
    assert inventory.generation(first, steps) == (prefill, Flops(sum(each), True))

    again = [inventory.forward(CallShapes(rows=2, length=length + step, keep=1)).count for step in range(1, steps)]
    first = CallShapes(rows=2, length=length, keep=1, cached=False)
    assert inventory.generation(first, steps) == (prefill, Flops(sum(again), True))


def test_generation_of_an_encoder_decoder_encodes_each_prompt_once() -> None:
    encoder = Stack(token=50, pairs={None: 2}, layers=1)
    inventory = _numbers(encoder, pairs={None: 7}, cross=20, source=30, source_pair=4)

    encoded = 2 * 10 * (50 + 2 * 10)
    first = 6 * (1000 + 300 + 7 + 20 + 4 * 10 + 30 * 10)
    second = 6 * (1000 + 300 + 2 * 7 + 20 + 4 * 10)
    called = CallShapes(rows=6, decoder_length=1, source_length=10)
    found = inventory.generation(called, 2, CallShapes(rows=2, length=10))
    assert found == (Flops(encoded + first, True), Flops(second, True))


def test_generation_after_a_cached_prompt_computes_what_is_new() -> None:
    inventory = _numbers(pairs={None: 7})
    found = inventory.generation(CallShapes(rows=1, length=2, past=8, keep=1), 1)
    assert found == (Flops(2 * 1000 + 300 + 2 * 10 * 7, True), Flops(0, True))


def test_the_cache_of_a_layer_with_a_window_stops_growing() -> None:
    inventory = _numbers()
    assert inventory.kv_bytes(2, 3) == 2 * 3 * 11
    assert inventory.kv_bytes(2, 100) == 2 * (100 * 10 + 3 * 1)
    assert inventory.kv_bytes(2, 100, slides=False) == 2 * 100 * 11


def test_importing_brings_no_torch() -> None:
    code = "import sys, inferspan.probes.flops.walk, inferspan.probes.flops.peaks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
