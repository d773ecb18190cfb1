"""What a test sees of a program that does not start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from support.backends import LOOPBACK, Collector, until


def test_program_whose_port_is_taken_fails_with_its_last_lines(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        collector = Collector(tmp_path, OTLP_GRPC_LISTEN=f"{LOOPBACK}:{taken.getsockname()[1]}")
        with pytest.raises(pytest.fail.Exception) as failure:
            collector.start()

    assert "otelcol ended with status 1 instead of starting" in str(failure.value)
    assert "address already in use" in str(failure.value)


def test_wait_in_vain_ends_and_says_for_what() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"waited 0 s in vain: a trace"):
        until(lambda: None, "a trace", patience_s=0.1)
