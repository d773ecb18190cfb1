"""Each program's own check of its files in collector-config/."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from support.backends import CONFIG, need

COLLECTORS = sorted(path.name for path in CONFIG.glob("collector*.yaml"))
# What has no default, because a wrong guess would be worse than no start.
REQUIRED = {
    "collector-agent.yaml": {"GATEWAY": "gateway.example:4317", "TOKEN_FILE": "token"},
    "collector-balancer.yaml": {"SAMPLERS": '["sampler-1:4317", "sampler-2:4317"]'},
    "collector-gateway.yaml": {"TLS_CERTIFICATE": "certificate.pem", "TLS_KEY": "key.pem", "TOKEN_FILE": "token"},
}


def check(*command: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str]:
    """Status and output."""
    variables = {**os.environ, **(environ or {})}
    done = subprocess.run(command, env=variables, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", COLLECTORS)
def test_collector_accepts_its_file(name: str) -> None:
    command = [str(need("otelcol")), "validate", "--config", str(CONFIG / name)]

    assert check(*command, environ=REQUIRED.get(name)) == (0, "")


@pytest.mark.parametrize(("name", "variable"), [(name, each) for name, row in REQUIRED.items() for each in row])
def test_collector_refuses_its_file_without_a_variable_that_it_needs(name: str, variable: str) -> None:
    environ = {key: value for key, value in REQUIRED[name].items() if key != variable}
    status, output = check(str(need("otelcol")), "validate", "--config", str(CONFIG / name), environ=environ)

    assert status == 1, output


@pytest.mark.parametrize("name", COLLECTORS)
def test_collector_refuses_its_file_with_a_typo(name: str, tmp_path: Path) -> None:
    typo = tmp_path / name
    typo.write_text((CONFIG / name).read_text("utf-8").replace("check_interval", "check_intervall"), "utf-8")
    status, output = check(str(need("otelcol")), "validate", "--config", str(typo), environ=REQUIRED.get(name))

    assert status == 1
    assert "check_intervall" in output


def test_jaeger_accepts_its_file() -> None:
    status, output = check(str(need("jaeger")), "validate", "--config", str(CONFIG / "jaeger.yaml"))

    assert status == 0, output


def test_jaeger_refuses_its_file_with_a_typo(tmp_path: Path) -> None:
    typo = tmp_path / "jaeger.yaml"
    typo.write_text((CONFIG / "jaeger.yaml").read_text("utf-8").replace("trace_storage:", "trace_store:"), "utf-8")

    assert check(str(need("jaeger")), "validate", "--config", str(typo))[0] != 0


def test_tempo_accepts_its_file(tmp_path: Path) -> None:
    options = ["-config.expand-env=true", "-config.verify=true", f"-config.file={CONFIG / 'tempo.yaml'}"]
    status, output = check(str(need("tempo")), *options, cwd=tmp_path)

    assert status == 0, output


def test_tempo_refuses_its_file_with_a_typo(tmp_path: Path) -> None:
    typo = tmp_path / "tempo.yaml"
    typo.write_text((CONFIG / "tempo.yaml").read_text("utf-8").replace("blocklist_poll", "blocklist_pol"), "utf-8")
    options = ["-config.expand-env=true", "-config.verify=true", f"-config.file={typo}"]

    assert check(str(need("tempo")), *options, cwd=tmp_path)[0] != 0


def test_operator_sends_by_the_protocol_that_its_image_has() -> None:
    resource = yaml.safe_load((CONFIG / "operator" / "instrumentation.yaml").read_text("utf-8"))
    image = (CONFIG / "operator" / "Dockerfile").read_text("utf-8")
    environ = {each["name"]: each["value"] for each in resource["spec"]["python"]["env"]}

    assert (resource["apiVersion"], resource["kind"]) == ("opentelemetry.io/v1alpha1", "Instrumentation")
    assert resource["spec"]["exporter"]["endpoint"] == "http://$(OTEL_NODE_IP):4318"
    assert environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert "opentelemetry-exporter-otlp-proto-http" in image
    assert resource["spec"]["python"]["image"] in image
