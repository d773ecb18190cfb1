"""``examples/serve.py`` under ``opentelemetry-instrument``: each HTTP request is one trace with its own inference.

Every request brings a trace id of its own and a text of its own length, so that an inference under the wrong request
is seen twice: by its parent and by its tokens.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration.test_demo import Collector

_NEEDED = ("fastapi", "uvicorn", "httpx", "opentelemetry.instrumentation.fastapi", "opentelemetry.distro")


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


_MISSING = [name for name in _NEEDED if not _is_there(name)]
if _MISSING:
    pytest.skip(
        f"examples/serve.py IS NOT TESTED: not installed: {', '.join(_MISSING)} (extra test)", allow_module_level=True
    )

ROOT = Path(__file__).parents[2]
REQUESTS = 8
START_S = 120
ANSWER_S = 60


@dataclass
class Server:
    """The service, and the collector that it sends to."""

    url: str
    collector: Collector


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    collector = Collector()
    log = tmp_path_factory.mktemp("serve") / "log"
    port = _free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_program("opentelemetry-instrument"), sys.executable, "examples/serve.py"],
            cwd=ROOT,
            env=_environment(collector.endpoint, port),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, process, log)
        yield Server(url, collector)
        process.terminate()
        process.wait(ANSWER_S)
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.kill()
        process.wait()
        collector.close()


def _environment(endpoint: str, port: int) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "INFERSPAN_"))}
    return environ | {
        "PORT": str(port),
        "OTEL_SERVICE_NAME": "serve-test",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }


def _program(name: str) -> str:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(url):
        if time.monotonic() > deadline or process.poll() is not None:
            pytest.fail(f"the service did not start:\n{log.read_text()}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/openapi.json", timeout=1).is_success
    except httpx.TransportError:
        return False


def _trace_id(route: int, number: int) -> str:
    return f"{route:016x}{number:016x}"


def _text(number: int) -> str:
    return "a" * number


def _request_all(server: Server, path: str, route: int) -> list[str]:
    """The answers to as many requests at once, the first of them to a text of one letter."""
    import httpx

    def request(number: int) -> str:
        traceparent = f"00-{_trace_id(route, number)}-{number:016x}-01"
        with client.stream(
            "POST", path, json={"text": _text(number)}, headers={"traceparent": traceparent}
        ) as response:
            assert response.status_code == 200
            return "".join(response.iter_text())

    with httpx.Client(base_url=server.url, timeout=ANSWER_S) as client, ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(request, range(1, REQUESTS + 1)))


def _facts(span: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def _shape(span: Any, spans: list[Any]) -> Any:
    """The span's name, and below it those of its descendants in the order of their starts."""
    children = sorted(
        (other for other in spans if other.parent_span_id == span.span_id),
        key=lambda child: child.start_time_unix_nano,
    )
    return (span.name, *(_shape(child, spans) for child in children)) if children else span.name


def _traces(server: Server, route: int, spans_of_one: int) -> dict[str, list[Any]]:
    """The spans of each request to this route but HTTP's own inner ones, once there are so many of each."""
    wanted = {bytes.fromhex(_trace_id(route, number)) for number in range(1, REQUESTS + 1)}
    found = server.collector.wait_for(
        lambda span: span.trace_id in wanted and " http " not in span.name, REQUESTS * spans_of_one, ANSWER_S
    )
    traces: dict[str, list[Any]] = {}
    for span in found:
        traces.setdefault(span.trace_id.hex(), []).append(span)
    return traces


def _server_span(spans: list[Any], name: str) -> Any:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    found = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [span.name for span in found] == [name]
    return found[0]


def test_serve_classify_concurrently_gives_each_request_its_own_inference(server: Server) -> None:
    answers = _request_all(server, "/classify", route=1)
    assert all('"label":"' in answer for answer in answers)
    traces = _traces(server, route=1, spans_of_one=5)
    assert sorted(traces) == [_trace_id(1, number) for number in range(1, REQUESTS + 1)]
    for number in range(1, REQUESTS + 1):
        spans = traces[_trace_id(1, number)]
        root = _server_span(spans, "POST /classify")
        assert root.parent_span_id.hex() == f"{number:016x}"
        assert _shape(root, spans) == (
            "POST /classify",
            ("text-classification tiny-bert-random", "tokenize", "forward", "detokenize"),
        )
        (inference,) = (span for span in spans if span.name.startswith("text-classification"))
        assert _facts(inference)["gen_ai.usage.input_tokens"] == number


def test_serve_chat_streamed_concurrently_gives_each_request_its_own_inference(server: Server) -> None:
    answers = _request_all(server, "/chat", route=2)
    assert all(answers)
    traces = _traces(server, route=2, spans_of_one=6)
    assert sorted(traces) == [_trace_id(2, number) for number in range(1, REQUESTS + 1)]
    read = []
    for number in range(1, REQUESTS + 1):
        spans = traces[_trace_id(2, number)]
        root = _server_span(spans, "POST /chat")
        assert root.parent_span_id.hex() == f"{number:016x}"
        assert _shape(root, spans) == (
            "POST /chat",
            "tokenize",
            ("text_completion tiny-llama-random", ("forward", "prefill", "decode")),
        )
        (inference,) = (span for span in spans if span.name.startswith("text_completion"))
        read.append(_facts(inference)["gen_ai.usage.input_tokens"])
        assert _facts(inference)["gen_ai.request.stream"] is True
    template = read[0] - 1
    assert read == [template + number for number in range(1, REQUESTS + 1)]


def test_serve_sends_under_its_service_name(server: Server) -> None:
    _request_all(server, "/classify", route=3)
    assert len(_traces(server, route=3, spans_of_one=5)) == REQUESTS
    assert server.collector.services == {"serve-test"}
