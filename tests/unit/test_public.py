"""What users may rely on, pinned: a change here is a change for them."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import inferspan
from inferspan import config
from inferspan.core.block import InferenceBlock, PhaseBlock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]


def public(thing: object) -> list[str]:
    return sorted(name for name in vars(thing) if not name.startswith("_"))


def test_package_exports() -> None:
    assert inferspan.__all__ == [
        "InferspanWarning",
        "__version__",
        "force_flush",
        "inference",
        "instrument",
        "instrument_module",
        "uninstrument",
    ]
    assert [name for name in inferspan.__all__ if not hasattr(inferspan, name)] == []


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        pytest.param("instrument", "(**settings)", id="instrument"),
        pytest.param("uninstrument", "()", id="uninstrument"),
        pytest.param("force_flush", "(timeout_s=30.0)", id="force_flush"),
        pytest.param("instrument_module", "(module, *, name=None, layers=None)", id="instrument_module"),
        pytest.param(
            "inference", "(name, *, model=None, operation=None, stream=False, links=None, parent=None)", id="inference"
        ),
    ],
)
def test_function_parameters(function: str, parameters: str) -> None:
    signature = inspect.signature(getattr(inferspan, function))
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]

    assert str(inspect.Signature(bare)) == parameters


def test_blocks_methods() -> None:
    assert public(InferenceBlock) == ["phase", "set_attribute", "set_batch_size", "set_tokens", "token"]
    assert public(PhaseBlock) == ["set_attribute"]


def test_entry_points(project: dict[str, Any]) -> None:
    assert project["scripts"] == {"inferspan": "inferspan.cli:main"}
    assert project["entry-points"] == {
        "opentelemetry_instrumentor": {"inferspan": "inferspan.instrumentor:InferspanInstrumentor"},
        "opentelemetry_environment_variables": {"inferspan": "inferspan.environment_variables"},
        "opentelemetry_traces_exporter": {"inferspan_console": "inferspan.exporters.console:WaterfallSpanExporter"},
        "opentelemetry_id_generator": {"inferspan": "inferspan.emit.ids:IndependentIdGenerator"},
    }


def test_entry_points_lead_to_something(project: dict[str, Any]) -> None:
    targets = [target for group in project["entry-points"].values() for target in group.values()]
    for target in [*project["scripts"].values(), *targets]:
        module, _, name = target.partition(":")
        found = import_module(module)
        assert name == "" or hasattr(found, name), target


def test_extras(project: dict[str, Any]) -> None:
    assert sorted(project["optional-dependencies"]) == [
        "agent",
        "all",
        "bench",
        "demo",
        "instruments-any",
        "otlp",
        "test",
        "transformers",
    ]


def test_settings_and_their_variables() -> None:
    assert {setting.field: config.variables(setting) for setting in config.SETTINGS} == {
        "profile": ("INFERSPAN_PROFILE", "OTEL_INFERSPAN_PROFILE"),
        "hooks": ("INFERSPAN_HOOKS", "OTEL_INFERSPAN_HOOKS"),
        "modules": ("INFERSPAN_MODULES", "OTEL_INFERSPAN_MODULES"),
        "capture_content": ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",),
        "content_length": ("INFERSPAN_CONTENT_LENGTH", "OTEL_INFERSPAN_CONTENT_LENGTH"),
        "local_model_name": ("INFERSPAN_LOCAL_MODEL_NAME", "OTEL_INFERSPAN_LOCAL_MODEL_NAME"),
        "children_max": ("INFERSPAN_CHILDREN_MAX", "OTEL_INFERSPAN_CHILDREN_MAX"),
        "queue_max": ("INFERSPAN_QUEUE_MAX", "OTEL_INFERSPAN_QUEUE_MAX"),
        "token_points_max": ("INFERSPAN_TOKEN_POINTS_MAX", "OTEL_INFERSPAN_TOKEN_POINTS_MAX"),
        "models_max": ("INFERSPAN_MODELS_MAX", "OTEL_INFERSPAN_MODELS_MAX"),
        "metrics": ("INFERSPAN_METRICS", "OTEL_INFERSPAN_METRICS"),
        "process_stats": ("INFERSPAN_PROCESS_STATS", "OTEL_INFERSPAN_PROCESS_STATS"),
        "measure": ("INFERSPAN_MEASURE", "OTEL_INFERSPAN_MEASURE"),
        "gpu_timers_max": ("INFERSPAN_GPU_TIMERS_MAX", "OTEL_INFERSPAN_GPU_TIMERS_MAX"),
        "layers": ("INFERSPAN_LAYERS", "OTEL_INFERSPAN_LAYERS"),
        "layers_every": ("INFERSPAN_LAYERS_EVERY", "OTEL_INFERSPAN_LAYERS_EVERY"),
        "layers_max": ("INFERSPAN_LAYERS_MAX", "OTEL_INFERSPAN_LAYERS_MAX"),
        "flush_timeout": ("INFERSPAN_FLUSH_TIMEOUT", "OTEL_INFERSPAN_FLUSH_TIMEOUT"),
        "flush_at_rest": ("INFERSPAN_FLUSH_AT_REST", "OTEL_INFERSPAN_FLUSH_AT_REST"),
        "fast_path": ("INFERSPAN_FAST_PATH", "OTEL_INFERSPAN_FAST_PATH"),
        "latest_conventions": ("OTEL_SEMCONV_STABILITY_OPT_IN",),
        "devices": ("INFERSPAN_DEVICES", "OTEL_INFERSPAN_DEVICES"),
        "devices_detail": ("INFERSPAN_DEVICES_DETAIL", "OTEL_INFERSPAN_DEVICES_DETAIL"),
        "devices_interval": ("INFERSPAN_DEVICES_INTERVAL", "OTEL_INFERSPAN_DEVICES_INTERVAL"),
        "devices_lock": ("INFERSPAN_DEVICES_LOCK", "OTEL_INFERSPAN_DEVICES_LOCK"),
        "ranks": ("INFERSPAN_RANKS", "OTEL_INFERSPAN_RANKS"),
    }


def test_settings_have_a_field_each() -> None:
    assert [setting.field for setting in config.SETTINGS] == list(config.Settings.__slots__)


def test_package_is_typed() -> None:
    assert Path(inferspan.__file__).with_name("py.typed").is_file()
