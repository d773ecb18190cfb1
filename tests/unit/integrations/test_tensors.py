"""Rows, lengths and tokens, from real tensors on the host and from tensors that are nowhere."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import Any

import numpy
import pytest
import torch
from transformers import BatchEncoding

from inferspan.core.batch import Batch, Output
from inferspan.integrations.tensors import begins_with, read_batch, read_output, read_tensor

PAD, END, OTHER_END = 0, 2, 3

# Two rows of four, the first padded on the left by one.
IDS = torch.tensor([[PAD, 5, 6, 7], [5, 6, 7, 8]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])


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
        pytest.param(
            {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 4, 4)},
            None,
            Batch(2, 4, 8, True, 8, "cpu"),
            id="mask of another shape",
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
        pytest.param({"input_ids": away(IDS[:1])}, PAD, Batch(1, 4, 4, True, 4, "meta"), id="one row off the host"),
        pytest.param({"input_ids": away(IDS)}, None, Batch(2, 4, 8, True, 8, "meta"), id="no padding off the host"),
        pytest.param({"inputs_embeds": torch.ones(2, 4, 8)}, None, Batch(2, device="cpu"), id="embeddings"),
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
    read_output(array, 1, frozenset({END}), None)


# What comes out


def sequences(*rows: list[int]) -> torch.Tensor:
    """Rows behind a prompt of two tokens, which looks like the end."""
    return torch.tensor([[END, END, *row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "end_ids", "limit", "expected"),
    [
        pytest.param([[5, 6, END]], {END}, 8, Output(3, True, ("stop",), 3), id="one row that ended"),
        pytest.param([[5, 6, 7]], {END}, 3, Output(3, True, ("length",), 3), id="one row at the limit"),
        pytest.param([[5, 6, END]], {END}, 3, Output(3, True, ("stop",), 3), id="ended at the limit"),
        pytest.param([[5, 6, 7]], {END}, 8, Output(3, True, ("stop",), 3), id="stopped by something else"),
        pytest.param([[5, 6, 7]], {END}, None, Output(3, True, ("length",), 3), id="limit not known"),
        pytest.param(
            [[5, END, PAD, PAD], [5, 6, 7, END], [5, 6, 7, 8]],
            {END},
            4,
            Output(10, True, ("stop", "stop", "length"), 4),
            id="rows that ended early",
        ),
        pytest.param(
            [[5, OTHER_END, END], [END, PAD, PAD], [5, 6, 7]],
            {END, OTHER_END},
            3,
            Output(6, True, ("stop", "stop", "length"), 3),
            id="two ways to end",
        ),
        pytest.param([[5, 6], [7, 8]], set(), 2, Output(4, True, ("length", "length"), 2), id="no end"),
        pytest.param([[5, 6], [7, 8]], set(), 9, Output(4, True, ("stop", "stop"), 2), id="no end, stopped early"),
        pytest.param([[], []], {END}, 5, Output(0, True, ("stop", "stop"), 0), id="nothing generated"),
    ],
)
def test_read_output(rows: list[list[int]], end_ids: set[int], limit: int | None, expected: Output) -> None:
    assert read_output(sequences(*rows), 2, frozenset(end_ids), limit) == expected


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        pytest.param(3, 4, Output(12, False, (), 4), id="several rows: a bound"),
        pytest.param(1, 4, Output(4, True, (), 4), id="one row"),
        pytest.param(1, 9, Output(4, True, ("stop",), 4), id="one row that stopped"),
        pytest.param(1, None, Output(4, True, (), 4), id="one row, limit not known"),
    ],
)
def test_read_output_off_the_host(rows: int, limit: int | None, expected: Output) -> None:
    assert read_output(away(torch.ones(rows, 6).long()), 2, frozenset({END}), limit) == expected


def test_read_output_with_a_padding_id_counts_to_where_a_row_was_stopped() -> None:
    # stop strings end a row without an end-of-sequence token
    ids = sequences([5, 6, PAD, PAD], [5, END, PAD, PAD], [5, 6, 7, 8])

    assert read_output(ids, 2, frozenset({END}), 4, PAD) == Output(8, True, ("stop", "stop", "length"), 4)
    assert read_output(ids, 2, frozenset(), 4, PAD) == Output(8, True, ("stop", "stop", "length"), 4)


def test_read_output_of_several_choices_for_each_prompt_counts_each() -> None:
    ids = sequences([5, END, PAD], [5, 6, END], [5, 6, 7], [END, PAD, PAD]).reshape(2, 2, 5)

    assert read_output(ids, 2, frozenset({END}), 3) == Output(9, True, ("stop", "stop", "length", "stop"), 3)
    assert read_output(away(ids), 2, frozenset({END}), 3) == Output(12, False, (), 3)


def test_read_output_of_many_rows_has_a_bounded_number_of_reasons() -> None:
    output = read_output(sequences(*[[5, END]] * 100), 2, frozenset({END}), 2)

    assert output == Output(200, True, ("stop",) * 64, 2)


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(torch.tensor([1, 2, 3]), id="one dimension"),
        pytest.param(torch.ones(2, 1).long(), id="shorter than the prompt"),
        pytest.param(torch.ones(2, 4), id="no ids"),
        pytest.param(torch.ones(1, 2, 3, 4).long(), id="four dimensions"),
        pytest.param([[1, 2, 3]], id="list"),
        pytest.param("text", id="text"),
        pytest.param(None, id="none"),
    ],
)
def test_read_output_of_what_is_no_sequence_is_none(ids: Any) -> None:
    assert read_output(ids, 2, frozenset({END}), None) is None


@pytest.mark.parametrize(
    ("ids", "start", "expected"),
    [
        pytest.param(IDS, IDS[:, :2], True, id="each row its own"),
        pytest.param(IDS, IDS[:, 1:3], False, id="another"),
        pytest.param(IDS.repeat_interleave(3, 0), IDS[:, :2], True, id="several choices for each row"),
        pytest.param(away(IDS), IDS[:, :2], False, id="off the host"),
    ],
)
def test_begins_with(ids: Any, start: Any, expected: bool) -> None:
    assert begins_with(ids, start) is expected


def test_reading_leaves_the_tensors_as_they_were() -> None:
    ids, mask = IDS.clone(), MASK.clone()
    read_batch({"input_ids": ids, "attention_mask": mask}, PAD)
    read_output(ids, 1, frozenset({END, 5}), 2, PAD)

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
        read_output(IDS, 1, frozenset({END}), None, PAD)

    # numpy() itself detaches, which copies and computes nothing
    assert set(seen) <= {"aten.detach.default"}


def test_reading_under_fake_tensors_is_a_bound() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        ids, mask = torch.ones(2, 4).long(), torch.ones(2, 4)
        assert read_batch({"input_ids": ids, "attention_mask": mask}) == Batch(2, 4, 8, False, 8, "cpu")
        assert read_output(ids, 1, frozenset({END}), None) == Output(6, False, (), 3)


def test_reading_under_vmap_is_a_bound() -> None:
    found = []

    def model(row: torch.Tensor) -> torch.Tensor:
        found.append(read_batch({"input_ids": row, "attention_mask": row}))
        return row

    torch.vmap(model)(IDS)

    assert found == [Batch(1, 4, 4, False, 4, "cpu")]
