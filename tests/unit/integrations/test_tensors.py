"""Rows, lengths and tokens, from real tensors on the host and from tensors that are nowhere."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import Any

import numpy
import pytest
import torch
from transformers import BatchEncoding, DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from inferspan.core.batch import Batch
from inferspan.integrations.tensors import cache_length, ids_of, read_batch, read_call, read_tensor

PAD = 0

# Two rows of four, the first padded on the left by one.
IDS = torch.tensor([[PAD, 5, 6, 7], [5, 6, 7, 8]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
VECTORS = torch.ones(2, 4, 8)
CAUSAL = torch.ones(4, 4).tril().bool()


def away(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape off the host, where nothing can be read."""
    return tensor.to("meta")


# What goes in


@pytest.mark.parametrize(
    ("inputs", "pad_id", "expected"),
    [
        pytest.param({"input_ids": IDS, "attention_mask": MASK}, None, Batch(2, 4, 7, True, 8, "cpu"), id="mask"),
        pytest.param(
            {"input_ids": IDS, "attention_mask": MASK.bool()}, None, Batch(2, 4, 7, True, 8, "cpu"), id="bool"
        ),
        pytest.param(
            {"input_ids": IDS, "attention_mask": MASK.float()}, None, Batch(2, 4, 7, True, 8, "cpu"), id="float mask"
        ),
        pytest.param(
            {"input_ids": IDS, "attention_mask": MASK}, 5, Batch(2, 4, 7, True, 8, "cpu"), id="mask before padding id"
        ),
        pytest.param({"input_ids": IDS}, PAD, Batch(2, 4, 7, True, 8, "cpu"), id="padding id"),
        pytest.param({"input_ids": IDS}, None, Batch(2, 4, 8, True, 8, "cpu"), id="neither"),
        pytest.param(
            {"input_ids": IDS, "attention_mask": None}, None, Batch(2, 4, 8, True, 8, "cpu"), id="mask of none"
        ),
        pytest.param({"input_ids": IDS[0]}, None, Batch(1, 4, 4, True, 4, "cpu"), id="one row without a batch"),
        pytest.param({"input_ids": IDS.reshape(1, 2, 4)}, None, Batch(2, 4, 8, True, 8, "cpu"), id="choices"),
        pytest.param({"input_ids": torch.zeros(2, 0).long()}, None, Batch(2, 0, 0, True, 0, "cpu"), id="no positions"),
        pytest.param({"input_ids": torch.zeros(0, 4).long()}, None, Batch(0, 4, 0, True, 0, "cpu"), id="no rows"),
        pytest.param(
            {"input_ids": away(IDS), "attention_mask": away(MASK)},
            None,
            Batch(2, 4, 8, False, 8, "meta"),
            id="off the host: a bound",
        ),
        pytest.param(
            {"input_ids": away(IDS), "attention_mask": MASK},
            None,
            Batch(2, 4, 7, True, 8, "meta"),
            id="mask on the host",
        ),
        pytest.param({"input_ids": away(IDS)}, PAD, Batch(2, 4, 8, False, 8, "meta"), id="padding off the host"),
        pytest.param({"input_ids": away(IDS[:1])}, PAD, Batch(1, 4, 4, False, 4, "meta"), id="one row off the host"),
        pytest.param({"input_ids": away(IDS)}, None, Batch(2, 4, 8, True, 8, "meta"), id="no padding off the host"),
        pytest.param({"inputs_embeds": VECTORS}, None, Batch(2, 4, 8, False, 8, "cpu"), id="embeddings"),
        pytest.param({"inputs_embeds": VECTORS[:1]}, None, Batch(1, 4, 4, True, 4, "cpu"), id="embeddings of one row"),
        pytest.param(
            {"inputs_embeds": VECTORS, "attention_mask": MASK}, PAD, Batch(2, 4, 7, True, 8, "cpu"), id="masked vectors"
        ),
        pytest.param(
            {"inputs_embeds": VECTORS, "input_ids": IDS},
            PAD,
            Batch(2, 4, 7, True, 8, "cpu"),
            id="ids and their vectors",
        ),
        pytest.param(
            {"inputs_embeds": VECTORS, "input_ids": IDS[:, :2], "attention_mask": MASK},
            PAD,
            Batch(2, 4, 7, True, 8, "cpu"),
            id="vectors, and other ids",
        ),
        pytest.param(
            {"encoder_outputs": BaseModelOutput(VECTORS), "attention_mask": MASK, "decoder_input_ids": IDS[:, :1]},
            PAD,
            Batch(2, device="cpu"),
            id="an encoder's output",
        ),
        pytest.param({"decoder_input_ids": IDS}, PAD, Batch(2, device="cpu"), id="of a decoder alone"),
        pytest.param({"pixel_values": torch.ones(3, 3, 8, 8)}, None, Batch(3, device="cpu"), id="images"),
        pytest.param({"input_features": torch.ones(1, 80, 30)}, None, Batch(1, device="cpu"), id="audio"),
        pytest.param(
            {"input_ids": None, "pixel_values": torch.ones(3, 1)}, None, Batch(3, device="cpu"), id="ids none"
        ),
        pytest.param(
            {"input_ids": IDS.requires_grad_(False), "pixel_values": torch.ones(5, 1)},
            None,
            Batch(2, 4, 8, True, 8, "cpu"),
            id="ids before images",
        ),
        pytest.param({"pixel_values": torch.tensor(1.0)}, None, None, id="a number"),
        pytest.param({"input_ids": [[1, 2], [3]]}, None, None, id="lists"),
        pytest.param({"labels": IDS}, None, None, id="nothing that is known"),
        pytest.param({}, None, None, id="nothing"),
        pytest.param(None, None, None, id="none"),
        pytest.param([IDS], None, None, id="list"),
        pytest.param("input_ids", None, None, id="text"),
    ],
)
def test_read_batch(inputs: Any, pad_id: int | None, expected: Batch | None) -> None:
    assert read_batch(inputs, pad_id) == expected


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(dict, id="dict"),
        pytest.param(OrderedDict, id="OrderedDict"),
        pytest.param(UserDict, id="UserDict"),
        pytest.param(BatchEncoding, id="BatchEncoding"),
        pytest.param(MappingProxyType, id="mappingproxy"),
    ],
)
def test_read_batch_of_any_mapping(kind: Any) -> None:
    inputs = kind({"input_ids": IDS, "attention_mask": MASK})

    assert read_batch(inputs) == Batch(2, 4, 7, True, 8, "cpu")


def test_read_batch_of_a_mask_that_wants_gradients_is_a_bound() -> None:
    batch = read_batch({"input_ids": IDS, "attention_mask": MASK.float().requires_grad_()})

    assert batch == Batch(2, 4, 8, False, 8, "cpu")


# Masks of other shapes


def keys(mask: torch.Tensor) -> torch.Tensor:
    """Of one row for each query: shape ``(rows, 1, queries, keys)``."""
    return mask.bool()[:, None, None, :].expand(-1, 1, 4, -1)


def biased(mask: torch.Tensor, masked: float = -torch.inf) -> torch.Tensor:
    """As a bias that is added to the scores."""
    return torch.zeros(mask.shape).masked_fill(~mask, masked)


LEFT = CAUSAL & keys(MASK)
RIGHT = CAUSAL & keys(MASK.flip(1))
BLOCKS = torch.block_diag(torch.ones(2, 2).tril(), torch.ones(2, 2).tril()).bool()[None, None]
ALIBI = -0.5 * (torch.arange(4)[:, None] - torch.arange(4)).abs().float()
FILLED = LEFT | ~LEFT.any(dim=-1, keepdim=True)  # queries of padding see everything, as transformers has it for SDPA


@pytest.mark.parametrize(
    ("mask", "tokens", "exact"),
    [
        pytest.param(LEFT, 7, True, id="causal"),
        pytest.param(LEFT.int(), 7, True, id="ones"),
        pytest.param(LEFT[:, 0], 7, True, id="without heads"),
        pytest.param(LEFT.expand(-1, 3, -1, -1), 7, True, id="heads"),
        pytest.param(RIGHT, 7, True, id="padded on the right"),
        pytest.param(keys(MASK) & keys(MASK).mT, 7, True, id="both ways"),
        pytest.param(keys(MASK)[:, :, :1], 7, True, id="for all queries"),
        pytest.param(CAUSAL[None, None], 8, True, id="for all rows"),
        pytest.param(BLOCKS, 8, True, id="sequences in blocks"),
        pytest.param(torch.ones(2, 1, 4, 4), 8, True, id="nothing masked"),
        pytest.param(biased(LEFT), 7, True, id="bias"),
        pytest.param(biased(LEFT, torch.finfo(torch.float32).min), 7, True, id="finite bias"),
        pytest.param(biased(LEFT, -10_000.0).half(), 7, True, id="bias of half precision"),
        pytest.param(biased(LEFT) + ALIBI, 7, True, id="bias by distance"),
        pytest.param({"full_attention": LEFT, "sliding_attention": LEFT}, 7, True, id="by kind of layers"),
        pytest.param(FILLED, 8, False, id="padding sees everything: a bound"),
        pytest.param(keys(MASK), 7, True, id="padding sees the others"),
        pytest.param(LEFT.to("meta"), 8, False, id="off the host: a bound"),
        pytest.param(biased(LEFT).bfloat16(), 8, False, id="not for numpy: a bound"),
        pytest.param(torch.ones(2, 1, 3, 3), 8, False, id="of other sizes: a bound"),
        pytest.param(torch.ones(2, 3), 8, False, id="shorter: a bound"),
        pytest.param(torch.ones(3, 4), 8, False, id="of other rows: a bound"),
        pytest.param(torch.ones(2, 1, 1024, 1024), 8, False, id="large: a bound"),
        pytest.param([[0, 1, 1, 1], [1, 1, 1, 1]], 8, False, id="no tensor: a bound"),
    ],
)
def test_read_batch_of_any_mask(mask: Any, tokens: int, exact: bool) -> None:
    assert read_batch({"input_ids": IDS, "attention_mask": mask}) == Batch(2, 4, tokens, exact, 8, "cpu")


@pytest.mark.parametrize("layers", [True, False])
def test_read_batch_of_a_step_counts_what_is_not_in_the_cache(layers: bool) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    past = torch.ones(2, 3, 4, 8)
    cache: Any = ((past, past),)
    if layers:
        cache = DynamicCache()
        cache.update(past, past, 0)
    inputs = {"input_ids": IDS[:, :2], "attention_mask": mask, "past_key_values": cache}

    assert cache_length(cache) == 4
    assert read_batch(inputs) == Batch(2, 2, 3, True, 4, "cpu")


def test_read_batch_of_a_step_on_a_cache_of_fixed_size_is_a_bound() -> None:
    class Layer:
        is_compileable = True

        def get_seq_length(self) -> int:
            raise AssertionError("computed on the device")

    class Cache:
        layers = (Layer(),)

    cache = Cache()
    cache.layers = [Layer()]  # type: ignore[assignment]
    inputs = {"input_ids": IDS[:, :1], "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 0]]), "past_key_values": cache}

    assert cache_length(cache) is None
    assert read_batch(inputs) == Batch(2, 1, 2, False, 2, "cpu")


# Several sequences in one row

ROW = torch.tensor([[5, 6, 7, 5, 6, 5]])


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        pytest.param({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]])}, Batch(3, 3, 6, True, 6, "cpu"), id="places"),
        pytest.param({"position_ids": torch.arange(6)[None]}, Batch(1, 6, 6, True, 6, "cpu"), id="one sequence"),
        pytest.param({"position_ids": torch.arange(3, 9)[None]}, Batch(1, 6, 6, True, 6, "cpu"), id="goes on"),
        pytest.param(
            {"position_ids": torch.ones(3, 1, 6).long()},
            Batch(1, 6, 6, True, 6, "cpu"),
            id="places in three dimensions",
        ),
        pytest.param(
            {"cu_seq_lens_q": torch.tensor([0, 3, 5, 6]).int()}, Batch(3, 3, 6, True, 6, "cpu"), id="cumulated lengths"
        ),
        pytest.param({"cu_seqlens": torch.tensor([0, 2, 5])}, Batch(2, 3, 5, True, 6, "cpu"), id="padded at the end"),
        pytest.param(
            {"cu_seq_lens_q": away(torch.tensor([0, 3, 5, 6]))}, Batch(3, None, 6, False, 6, "cpu"), id="off the host"
        ),
    ],
)
def test_read_batch_of_packed_sequences(inputs: dict[str, Any], expected: Batch) -> None:
    assert read_batch({"input_ids": ROW, **inputs}) == expected


def test_read_call_takes_names_before_looks() -> None:
    def read(*args: Any, **kwargs: Any) -> Batch | None:
        return read_call(args, kwargs, has_ids=True, pad_id=PAD)

    assert read(VECTORS, input_ids=IDS) == Batch(2, 4, 7, True, 8, "cpu")
    assert read(IDS) == Batch(2, 4, 8, True, 8, "cpu")
    assert read({"input_ids": IDS, "attention_mask": MASK}) == Batch(2, 4, 7, True, 8, "cpu")
    assert read(1, x=VECTORS) == Batch(2, device="cpu")
    assert read("text") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(5, (5,), id="one"),
        pytest.param([6, 5], (6, 5), id="list"),
        pytest.param((5,), (5,), id="tuple"),
        pytest.param([], (), id="empty"),
        pytest.param(-1, (), id="negative"),
        pytest.param(torch.tensor(5), (5,), id="tensor"),
        pytest.param(torch.tensor([6, 5]), (6, 5), id="tensor of several"),
        pytest.param([torch.tensor(6), numpy.int64(5)], (6, 5), id="list of others"),
        pytest.param(numpy.array([6, 5]), (6, 5), id="array"),
        pytest.param(away(torch.tensor([6, 5])), (), id="off the host"),
        pytest.param("5", (), id="text"),
        pytest.param(None, (), id="none"),
    ],
)
def test_ids_of_what_transformers_takes(value: Any, expected: tuple[int, ...]) -> None:
    assert ids_of(value) == expected


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        pytest.param(IDS, Batch(2, 4, 8, True, 8, "cpu"), id="ids"),
        pytest.param(IDS.int(), Batch(2, 4, 8, True, 8, "cpu"), id="ids of 32 bits"),
        pytest.param(away(IDS), Batch(2, 4, 8, True, 8, "meta"), id="ids off the host"),
        pytest.param(torch.ones(2, 4), Batch(2, device="cpu"), id="audio"),
        pytest.param(torch.ones(2, 3, 8, 8), Batch(2, device="cpu"), id="images"),
        pytest.param(torch.tensor(1), None, id="a number"),
        pytest.param("text", None, id="text"),
        pytest.param(None, None, id="none"),
        pytest.param([1, 2], None, id="list"),
    ],
)
def test_read_tensor(tensor: Any, expected: Batch | None) -> None:
    assert read_tensor(tensor) == expected


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_read_of_numpy_arrays_never_raises(dtype: str) -> None:
    array = numpy.ones((2, 4), dtype=dtype)

    read_tensor(array)
    read_batch({"input_ids": array, "attention_mask": array})


def test_reading_leaves_the_tensors_as_they_were() -> None:
    ids, mask = IDS.clone(), MASK.clone()
    read_batch({"input_ids": ids, "attention_mask": mask}, PAD)

    assert torch.equal(ids, IDS)
    assert torch.equal(mask, MASK)


def test_reading_runs_no_operator_of_torch_but_detach() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        read_batch({"input_ids": IDS, "attention_mask": MASK}, PAD)

    # numpy() itself detaches, which copies and computes nothing
    assert set(seen) <= {"aten.detach.default"}


def test_reading_under_fake_tensors_is_a_bound() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        ids, mask = torch.ones(2, 4).long(), torch.ones(2, 4)
        assert read_batch({"input_ids": ids, "attention_mask": mask}) == Batch(2, 4, 8, False, 8, "cpu")


def test_reading_under_vmap_is_a_bound() -> None:
    found = []

    def model(row: torch.Tensor) -> torch.Tensor:
        found.append(read_batch({"input_ids": row, "attention_mask": row}))
        return row

    torch.vmap(model)(IDS)

    assert found == [Batch(1, 4, 4, False, 4, "cpu")]
