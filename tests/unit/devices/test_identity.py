"""Which devices a process sees, by CUDA's own variables and by torch."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from inferspan.devices.identity import torch_indices, visible
from inferspan.devices.reader import Device

A, B, C = "GPU-aaaa1111-0000", "GPU-aaaa2222-0000", "GPU-cccc3333-0000"
MIG = "MIG-dddd4444-0000"
ALIKE = [Device(A, 0, "H200"), Device(B, 1, "H200"), Device(C, 2, "H200"), Device(MIG, 0, "H200 MIG", parent=C)]
MIXED = [Device(A, 0, "T400"), Device(B, 1, "H200"), Device(C, 2, "H200")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, {A, B, C, MIG}, id="not_set"),
        pytest.param("", set(), id="empty"),
        pytest.param("-1", set(), id="minus_one"),
        pytest.param("0", {A}, id="index"),
        pytest.param("2, 0", {C, A}, id="indices"),
        pytest.param("1,7,0", {B}, id="index_too_high_ends_the_list"),
        pytest.param("0,-1,1", {A}, id="minus_one_ends_the_list"),
        pytest.param(B, {B}, id="uuid"),
        pytest.param("GPU-cccc", {C}, id="prefix"),
        pytest.param("GPU-aaaa", set(), id="prefix_of_two"),
        pytest.param(f"{C},{A}", {C, A}, id="uuids"),
        pytest.param(MIG, {MIG, C}, id="mig_uuid_with_its_board"),
        pytest.param("MIG-dddd", {MIG, C}, id="mig_prefix"),
        pytest.param(f"MIG-{C}/5/0", {C}, id="mig_by_instances"),
        pytest.param("NoDevFiles", set(), id="word"),
    ],
)
def test_cuda_visible_devices_leaves(value: str | None, expected: set[str]) -> None:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert visible(ALIKE, environ, {}) == expected


@pytest.mark.parametrize(
    ("order", "indices", "expected"),
    [
        pytest.param("PCI_BUS_ID", {}, {A}, id="order_of_the_bus"),
        pytest.param("FASTEST_FIRST", {}, set(), id="unknown_before_torch_has_cuda"),
        pytest.param(None, {B: 0}, {B}, id="as_torch_says"),
    ],
)
def test_index_among_different_boards_is_no_guess(
    order: str | None, indices: dict[str, int], expected: set[str]
) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0", **({} if order is None else {"CUDA_DEVICE_ORDER": order})}
    assert visible(MIXED, environ, indices) == expected


def test_torch_index_is_mapped_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = [C.removeprefix("GPU-"), "not-here", MIG.removeprefix("MIG-")]
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: len(uuids),
        get_device_properties=lambda index: SimpleNamespace(uuid=uuids[index]),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert torch_indices(ALIKE) == {C: 0, MIG: 2}


def test_torch_that_has_not_initialised_cuda_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)))
    assert torch_indices(ALIKE) == {}
