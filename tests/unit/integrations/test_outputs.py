"""What a generation returned, from real tensors on the host and from tensors that are nowhere."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from transformers import DynamicCache

from inferspan.core.batch import Output
from inferspan.integrations.outputs import Ends, Verdicts, begins_with, cached_tokens, read_output

PAD, END, OTHER_END = 0, 2, 3
IDS = torch.tensor([[PAD, 5, 6, 7], [5, 6, 7, 8]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])


def away(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape off the host, where nothing can be read."""
    return tensor.to("meta")


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
    assert read_output(sequences(*rows), 2, Ends(frozenset(end_ids), limit)) == expected


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
    assert read_output(away(torch.ones(rows, 6).long()), 2, Ends(frozenset({END}), limit)) == expected


def test_read_output_with_a_padding_id_counts_to_where_a_row_was_stopped() -> None:
    # stop strings end a row without an end-of-sequence token
    ids = sequences([5, 6, PAD, PAD], [5, END, PAD, PAD], [5, 6, 7, 8])

    assert read_output(ids, 2, Ends(frozenset({END}), 4, PAD)) == Output(8, True, ("stop", "stop", "length"), 4)
    # without an end-of-sequence token transformers pads nothing: what looks like it was generated
    assert read_output(ids, 2, Ends(frozenset(), 4, PAD)) == Output(12, True, ("length", "length", "length"), 4)


def test_read_output_of_several_choices_for_each_prompt_counts_each() -> None:
    ids = sequences([5, END, PAD], [5, 6, END], [5, 6, 7], [END, PAD, PAD]).reshape(2, 2, 5)

    assert read_output(ids, 2, Ends(frozenset({END}), 3)) == Output(9, True, ("stop", "stop", "length", "stop"), 3)
    assert read_output(away(ids), 2, Ends(frozenset({END}), 3)) == Output(12, False, (), 3)


def test_read_output_of_many_rows_has_a_bounded_number_of_reasons() -> None:
    output = read_output(sequences(*[[5, END]] * 100), 2, Ends(frozenset({END}), 2))

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
    assert read_output(ids, 2, Ends(frozenset({END}))) is None


@pytest.mark.parametrize(
    ("ids", "start", "expected"),
    [
        pytest.param(IDS, IDS[:, :2], True, id="each row its own"),
        pytest.param(IDS, IDS[:, 1:3], False, id="another"),
        pytest.param(IDS.repeat_interleave(3, 0), IDS[:, :2], True, id="several choices for each row"),
        pytest.param(away(IDS), IDS[:, :2], None, id="off the host"),
    ],
)
def test_begins_with(ids: Any, start: Any, expected: bool | None) -> None:
    assert begins_with(ids, start) is expected


# What the criteria said


def said(*rows: list[int]) -> Verdicts:
    """Whether each row had ended, after each token."""
    verdicts = Verdicts()
    for step in zip(*rows, strict=True):
        verdicts.note(torch.tensor(step).bool())
    return verdicts


def test_read_output_counts_each_row_to_where_the_criteria_have_ended_it() -> None:
    ids = sequences([5, END, END, END], [5, 6, END, END], [5, 6, 7, 8], [5, 6, 7, END])
    verdicts = said([1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1])
    ends = Ends(frozenset({END}), 4, END, verdicts)

    assert read_output(ids, 2, ends) == Output(12, True, ("stop", "stop", "length", "stop"), 4)


def test_read_output_of_a_row_that_generates_the_padding_id_counts_it() -> None:
    ids = sequences([5, PAD, PAD], [5, 6, PAD])

    assert read_output(ids, 2, Ends(frozenset({END}), 3, PAD, said([0, 1, 1], [0, 0, 1]))) == Output(
        5, True, ("stop", "length"), 3
    )


def test_read_output_without_an_end_counts_what_goes_on_behind_a_stop() -> None:
    ids = sequences([5, 6, 7], [5, 6, 7])

    assert read_output(ids, 2, Ends(frozenset(), 3, PAD, said([1, 0, 1], [0, 0, 1]))) == Output(
        6, True, ("stop", "length"), 3
    )


@pytest.mark.parametrize(
    "verdicts",
    [
        pytest.param(said([1, 1, 1]), id="of fewer rows"),
        pytest.param(said([1, 1], [1, 1]), id="of fewer steps"),
        pytest.param(Verdicts(), id="none"),
        pytest.param(None, id="not asked"),
    ],
)
def test_read_output_where_padding_may_be_the_end_is_a_bound(verdicts: Verdicts | None) -> None:
    ids = sequences([5, END, END], [5, 6, 7])

    assert read_output(ids, 2, Ends(frozenset({END}), 3, END, verdicts)) == Output(5, False, ("stop", "length"), 3)


def test_verdicts_off_the_host_are_none() -> None:
    verdicts = said([0, 1], [0, 0])
    verdicts.note(away(torch.tensor([True, True])))
    verdicts.note(torch.tensor([True, True]))

    assert (verdicts.steps, verdicts.lengths) == (4, None)


def test_read_output_with_ends_that_are_on_a_device_is_a_bound() -> None:
    assert read_output(sequences([5, 6], [5, 6]), 2, Ends(is_known=False)) == Output(4, False, (), 2)


# What a cache held


def cache(length: int) -> DynamicCache:
    found = DynamicCache()
    found.update(torch.ones(2, 3, length, 8), torch.ones(2, 3, length, 8), 0)
    return found


@pytest.mark.parametrize(
    ("inputs", "pad_id", "expected"),
    [
        pytest.param({"attention_mask": MASK}, PAD, 5, id="mask"),
        pytest.param({}, PAD, 5, id="padding id"),
        pytest.param({}, None, 6, id="neither"),
        pytest.param({"input_ids": away(IDS)}, None, 6, id="off the host"),
        pytest.param({"attention_mask": torch.ones(2, 7)}, PAD, None, id="only what is new"),
        pytest.param({"past_key_values": cache(4)}, None, None, id="all of it"),
        pytest.param({"past_key_values": DynamicCache()}, None, None, id="empty cache"),
        pytest.param({"past_key_values": None}, None, None, id="no cache"),
        pytest.param({"input_ids": None}, None, None, id="no ids"),
    ],
)
def test_cached_tokens(inputs: dict[str, Any], pad_id: int | None, expected: int | None) -> None:
    assert cached_tokens({"input_ids": IDS, "past_key_values": cache(3), **inputs}, pad_id) == expected


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_reading_numpy_arrays_never_raises(dtype: str) -> None:
    read_output(numpy.ones((2, 4), dtype=dtype), 1, Ends(frozenset({END})))


def test_reading_leaves_the_ids_as_they_were_and_runs_no_operator_but_detach() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    ids, done = IDS.clone(), torch.tensor([True, False])
    with Watch():
        read_output(ids, 1, Ends(frozenset({END, 5}), 2, PAD))
        Verdicts().note(done)

    # numpy() itself detaches, which copies and computes nothing
    assert set(seen) <= {"aten.detach.default"}
    assert torch.equal(ids, IDS)


def test_reading_fake_tensors_is_a_bound() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        ids = torch.ones(2, 4).long()
        assert read_output(ids, 1, Ends(frozenset({END}))) == Output(6, False, (), 3)
