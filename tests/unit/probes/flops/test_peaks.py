"""The table of devices: which names have a row, and what a cell means."""

from __future__ import annotations

import pytest

from inferspan.probes.flops import peaks


@pytest.mark.parametrize(
    ("name", "bfloat16_tflops"),
    [
        pytest.param("NVIDIA H100 80GB HBM3", 989.4, id="H100 SXM as torch names it"),
        pytest.param("NVIDIA H100 PCIe", 756, id="H100 PCIe"),
        pytest.param("NVIDIA H200", 989.4, id="H200"),
        pytest.param("NVIDIA A100-SXM4-80GB", 312, id="A100 with dashes"),
        pytest.param("NVIDIA A100-PCIE-40GB", 312, id="capitals"),
        pytest.param("NVIDIA A100 80GB PCIe", 312, id="with spaces"),
        pytest.param("NVIDIA L4", 121, id="L4"),
        pytest.param("NVIDIA L40S", 362, id="L40S"),
        pytest.param("NVIDIA GeForce RTX 4090", 165.2, id="GeForce"),
        pytest.param("NVIDIA B200", 2250, id="B200"),
    ],
)
def test_a_device_of_the_table_has_its_peak(name: str, bfloat16_tflops: float) -> None:
    assert peaks.peak(name, "bfloat16") == pytest.approx(bfloat16_tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("NVIDIA L40", id="neither L4 nor L40S"),
        pytest.param("NVIDIA A10G", id="not A10"),
        pytest.param("NVIDIA A100-SXM4-40GB MIG 1g.5gb", id="a MIG instance"),
        pytest.param("NVIDIA A10-24Q", id="a share of a vGPU"),
        pytest.param("NVIDIA GeForce RTX 4090 Laptop GPU", id="laptop"),
        pytest.param("NVIDIA GeForce RTX 4090 D", id="a slower edition"),
        pytest.param("NVIDIA H100 NVL", id="H100 NVL"),
        pytest.param("NVIDIA H200 NVL", id="H200 NVL"),
        pytest.param("NVIDIA GH200 480GB", id="GH200"),
        pytest.param("AMD Instinct MI300X", id="AMD"),
        pytest.param("NVIDIA", id="the maker alone"),
        pytest.param("", id="no name"),
    ],
)
def test_a_device_without_a_row_has_no_figure(name: str) -> None:
    assert peaks.peak(name, "bfloat16") is None
    assert peaks.bandwidth(name) is None


def test_the_peak_is_that_of_the_dtype() -> None:
    def tflops(name: str, dtype: str, tf32: bool = False) -> float | None:
        found = peaks.peak(name, dtype, tf32)
        return None if found is None else found / 1e12

    h100 = "NVIDIA H100 80GB HBM3"
    assert tflops(h100, "float16") == pytest.approx(989.4)
    assert tflops(h100, "float8_e4m3fn") == pytest.approx(1978.9)
    assert tflops(h100, "int8") == pytest.approx(1978.9)
    assert tflops(h100, "float32") is None  # torch rounds float32 to tf32 only where the program allows it
    assert tflops(h100, "float32", tf32=True) == pytest.approx(494.7)
    assert tflops(h100, "float64") is None
    assert tflops("Tesla T4", "bfloat16") is None
    assert tflops("Tesla T4", "float16") == pytest.approx(65)


def test_the_bandwidth_is_that_of_the_memory() -> None:
    assert peaks.bandwidth("NVIDIA A100-SXM4-40GB") == pytest.approx(1555e9)
    assert peaks.bandwidth("NVIDIA A100-SXM4-80GB") == pytest.approx(2039e9)
    assert peaks.bandwidth("Tesla V100-SXM2-16GB") == pytest.approx(900e9)
    assert peaks.bandwidth("NVIDIA B200") is None


def test_each_row_is_dense_and_has_a_source() -> None:
    for name, row in peaks.TABLE.items():
        assert row.source, name
        if row.float8 is not None and row.bfloat16 is not None:
            assert row.float8 / row.bfloat16 == pytest.approx(2, rel=0.02), name  # with sparsity it would be 4
        if row.tf32 is not None and row.bfloat16 is not None:
            assert row.tf32 / row.bfloat16 == pytest.approx(0.5, rel=0.02), name
