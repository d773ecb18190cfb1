"""What a device can do at most: dense peak of its matrix units by number format, and bandwidth of its memory.

The figures are the makers', without sparsity and accumulating in float32, each checked against multiprocessors by
operations a clock by boost clock. What could not be checked so is not in the table: no row, no figure. This is not
what a device reaches: clocks fall under load, and a power limit or a board maker's own settings are not seen here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Peak(NamedTuple):
    """TFLOP/s (TOP/s for int8) with dense operands, GB/s of memory; ``None`` where there is none or it is unchecked."""

    tf32: float | None
    bfloat16: float | None
    float16: float | None
    float8: float | None
    int8: float | None
    bandwidth: float | None
    source: str


# By the words of the name that torch and NVML give, whatever stands between them. A name with one word more or less
# is another device (H100 NVL, RTX 4090 D, a laptop's, a MIG instance, a share of a vGPU), and has no row.
# fmt: off
TABLE: dict[str, Peak] = {
    #                  tf32    bf16    fp16    fp8     int8    GB/s
    "V100 SXM2 16GB":  Peak(None, None, 125,    None,   None,   900,  "NVIDIA V100 data sheet"),
    "V100 SXM2 32GB":  Peak(None, None, 125,    None,   None,   900,  "NVIDIA V100 data sheet"),
    "T4":              Peak(None, None, 65,     None,   None,   320,  "NVIDIA T4 data sheet"),
    "A100 SXM4 40GB":  Peak(156,  312,  312,    None,   624,    1555, "NVIDIA A100 data sheet"),
    "A100 SXM4 80GB":  Peak(156,  312,  312,    None,   624,    2039, "NVIDIA A100 data sheet"),
    "A100 PCIe 40GB":  Peak(156,  312,  312,    None,   624,    1555, "NVIDIA A100 data sheet"),
    "A100 80GB PCIe":  Peak(156,  312,  312,    None,   624,    1935, "NVIDIA A100 data sheet"),
    "A30":             Peak(82,   165,  165,    None,   None,   933,  "NVIDIA A30 data sheet"),
    "A10":             Peak(62.5, 125,  125,    None,   None,   600,  "NVIDIA A10 data sheet"),
    "A40":             Peak(74.8, 149.7, 149.7, None,   None,   696,  "NVIDIA A40 data sheet"),
    "L4":              Peak(60,   121,  121,    242,    None,   300,  "NVIDIA L4 data sheet"),
    "L40S":            Peak(183,  362,  362,    733,    None,   864,  "NVIDIA L40S data sheet"),
    "H100 80GB HBM3":  Peak(494.7, 989.4, 989.4, 1978.9, 1978.9, 3352, "NVIDIA H100 data sheet, SXM5"),
    "H100 PCIe":       Peak(378,  756,  756,    1513,   1513,   2039, "NVIDIA H100 data sheet, PCIe"),
    "H200":            Peak(494.7, 989.4, 989.4, 1978.9, 1978.9, 4800, "NVIDIA H200 data sheet, SXM"),
    "B200":            Peak(None, 2250, 2250,   4500,   4500,   None, "NVIDIA HGX B200 data sheet"),  # GB/s by edition
    "RTX 3090":        Peak(None, 71,   71,     None,   None,   936,  "NVIDIA Ampere GA102 white paper"),
    "RTX 4090":        Peak(None, 165.2, 165.2, None,   None,   1008, "NVIDIA Ada white paper"),
    "RTX 5090":        Peak(None, 209.5, 209.5, None,   None,   1792, "NVIDIA RTX Blackwell white paper"),
}
# fmt: on

_MAKERS_WORDS = frozenset(("nvidia", "tesla", "geforce"))


def peak(name: str, dtype: str, tf32: bool = False) -> float | None:
    """Dense peak of the device in FLOP/s (operations for int8) for products of ``dtype``, as torch names it.

    float32 has one only with ``tf32``, where the program lets torch round its operands; ``None`` where not known.
    """
    row = _row(name)
    if row is None:
        return None
    cell = {
        "bfloat16": row.bfloat16,
        "float16": row.float16,
        "float32": row.tf32 if tf32 else None,
        "int8": row.int8,
    }.get(dtype, row.float8 if dtype.startswith("float8") else None)
    return None if cell is None else cell * 1e12


def bandwidth(name: str) -> float | None:
    """Peak bandwidth of the device's memory in bytes per second; ``None`` where not known."""
    row = _row(name)
    return None if row is None or row.bandwidth is None else row.bandwidth * 1e9


@lru_cache(maxsize=64)
def _row(name: str) -> Peak | None:
    return _BY_WORDS.get(_words(name))


def _words(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[\s_-]+", name.strip().casefold())) - _MAKERS_WORDS


_BY_WORDS = {_words(name): row for name, row in TABLE.items()}
