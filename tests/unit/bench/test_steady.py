"""When a warm-up is over."""

from __future__ import annotations

import random

import pytest

from inferspan.bench.steady import WINDOW, is_steady


def noisy(count: int, spread: float, seed: int = 0) -> list[float]:
    chance = random.Random(seed)
    return [1 + chance.uniform(-spread, spread) for _ in range(count)]


@pytest.mark.parametrize(
    ("latencies", "steady"),
    [
        pytest.param([1.0] * (2 * WINDOW - 1), False, id="too-few"),
        pytest.param([1.0] * 2 * WINDOW, True, id="level"),
        pytest.param([5.0, 3.0, *[1.0] * 2 * WINDOW], True, id="settled"),
        pytest.param([2.0] * WINDOW + [1.0] * WINDOW, False, id="step-down"),
        pytest.param([1.0] * WINDOW + [1.2] * WINDOW, False, id="slower-again"),
        pytest.param([1 / (1 + 0.05 * place) for place in range(2 * WINDOW)], False, id="still-faster"),
        pytest.param([*[1.0] * 2 * WINDOW, 9.0], True, id="one-stall"),
        pytest.param(noisy(2 * WINDOW, 0.02), True, id="little-noise"),
    ],
)
def test_steady(latencies: list[float], steady: bool) -> None:
    assert is_steady(latencies) is steady


def test_noise_that_is_level_becomes_steady() -> None:
    latencies = noisy(200, 0.3)

    assert any(is_steady(latencies[:count]) for count in range(2 * WINDOW, 100))
