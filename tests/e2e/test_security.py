"""The hop to a Collector elsewhere: TLS and a bearer token, from an application and from an agent."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trustme

from support.application import Application
from support.backends import LOOPBACK, Collector, Jaeger, Prometheus, running
from support.told import CLASSIFICATION, all_traces, tree

TOKEN = "test-token-of-this-run"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Files of an authority made on the spot, of a certificate that it gave for the loopback, and of a token."""
    folder = tmp_path_factory.mktemp("secrets")
    files = {name: str(folder / name) for name in ("CA_FILE", "TLS_CERTIFICATE", "TLS_KEY", "TOKEN_FILE")}
    authority = trustme.CA()
    authority.cert_pem.write_to_path(files["CA_FILE"])
    certificate = authority.issue_cert(LOOPBACK, "localhost")
    certificate.private_key_pem.write_to_path(files["TLS_KEY"])
    for part in certificate.cert_chain_pems:
        part.write_to_path(files["TLS_CERTIFICATE"], append=True)
    Path(files["TOKEN_FILE"]).write_text(f"{TOKEN}\n")
    return files


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, secrets: Mapping[str, str], destinations: dict[str, str]
) -> Iterator[Collector]:
    variables = {**destinations, **secrets}
    with running(Collector(tmp_path_factory.mktemp("gateway"), "collector-gateway.yaml", **variables)) as started:
        yield started


def post(gateway: Collector, secrets: Mapping[str, str], token: str | None) -> int:
    """The gateway's status for an export without content."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    with httpx.Client(verify=ssl.create_default_context(cafile=secrets["CA_FILE"]), headers=headers) as client:
        return client.post(f"https://{LOOPBACK}:{gateway.http_port}/v1/traces", json={}).status_code


@pytest.mark.parametrize(
    ("token", "status"),
    [
        pytest.param(TOKEN, 200, id="right"),
        pytest.param("guessed", 401, id="wrong"),
        pytest.param(None, 401, id="none"),
    ],
)
def test_gateway_asks_for_the_token(
    gateway: Collector, secrets: Mapping[str, str], token: str | None, status: int
) -> None:
    assert post(gateway, secrets, token) == status


def test_gateway_speaks_tls_only(gateway: Collector) -> None:
    try:
        assert httpx.post(f"http://{LOOPBACK}:{gateway.http_port}/v1/traces", json={}).status_code == 400
    except httpx.ReadError:
        pass  # it answers, and closes at once: the answer may be lost
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.post(f"https://{LOOPBACK}:{gateway.http_port}/v1/traces", json={})


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_application_reaches_gateway(
    application: Callable[..., Application],
    gateway: Collector,
    secrets: Mapping[str, str],
    jaeger: Jaeger,
    prometheus: Prometheus,
    protocol: str,
) -> None:
    port = gateway.grpc_port if protocol == "grpc" else gateway.http_port
    program = application(
        "remote-" + protocol.partition("/")[0],
        f"https://{LOOPBACK}:{port}",
        protocol,
        OTEL_EXPORTER_OTLP_CERTIFICATE=secrets["CA_FILE"],
        OTEL_EXPORTER_OTLP_HEADERS="authorization=" + quote(f"Bearer {TOKEN}"),
    )
    program.do("classify", 2)
    complaints = program.end()

    assert complaints == ""
    found = Counter(map(tree, all_traces(jaeger, program.service, 4)))
    assert found == {"load tiny-bert": 1, "load tiny-llama": 1, CLASSIFICATION: 2}
    count = f'gen_ai_client_operation_duration_seconds_count{{job="{program.service}"}}'
    prometheus.until(lambda: prometheus.value(count) == 2, f"{count} == 2")


def test_application_with_a_wrong_token_is_told_and_not_hurt(
    application: Callable[..., Application], gateway: Collector, secrets: Mapping[str, str], jaeger: Jaeger
) -> None:
    program = application(
        "intruder",
        f"https://{LOOPBACK}:{gateway.grpc_port}",
        OTEL_EXPORTER_OTLP_CERTIFICATE=secrets["CA_FILE"],
        OTEL_EXPORTER_OTLP_HEADERS="authorization=" + quote("Bearer guessed"),
    )
    program.do("classify", 2)

    assert "UNAUTHENTICATED" in program.end()
    assert "intruder" not in jaeger.services()


def test_agent_forwards_to_gateway_with_its_hosts_name(
    application: Callable[..., Application],
    tmp_path: Path,
    gateway: Collector,
    secrets: Mapping[str, str],
    jaeger: Jaeger,
    prometheus: Prometheus,
) -> None:
    variables = {
        "GATEWAY": f"{LOOPBACK}:{gateway.grpc_port}",
        "CA_FILE": secrets["CA_FILE"],
        "TOKEN_FILE": secrets["TOKEN_FILE"],
        "OTEL_RESOURCE_ATTRIBUTES": "host.name=node-7",
    }
    with running(Collector(tmp_path / "agent", "collector-agent.yaml", **variables)) as agent:
        program = application("on-node-7", agent.otlp_grpc)
        program.do("classify", 2)
        program.end()
        traces = all_traces(jaeger, program.service, 4)
        memory = 'system_memory_limit_bytes{job="host",instance="node-7"}'
        prometheus.until(lambda: prometheus.value(memory), memory)

    assert Counter(map(tree, traces))[CLASSIFICATION] == 2
    hosts = {
        tag["value"]
        for trace in traces
        for process in trace["processes"].values()
        for tag in process["tags"]
        if tag["key"] == "host.name"
    }
    assert hosts == {"node-7"}
