"""Settings from the environment and from keywords: what is taken, what is refused, and what is said of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest

import inferspan
from inferspan import config
from inferspan.config import HOOKS, MEASURES, SETTINGS, Settings, load
from inferspan.core import current
from inferspan.faults import InferspanWarning
from inferspan.instrumentor import InferspanInstrumentor
from support.recorder import Recorder

HOOKS_ALLOWED = "comma list of pipelines, generation, continuous_batching, tokenizers, models, modules, loading"
MEASURE_ALLOWED = "comma list of gpu_time, memory, flops, energy, leaks, compiles, host_allocations"
RANKS_ALLOWED = "comma list of ranks and ranges such as 0,4-7, below 65536"
HOOKS_DEFAULT = "continuous_batching,generation,loading,models,modules,pipelines,tokenizers"
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"

ANY_TEXT = ("INFERSPAN_DEVICES_LOCK", "INFERSPAN_LAYERS", "INFERSPAN_MODULES")

DEFAULTS = {
    "hooks": frozenset(HOOKS),
    "modules": frozenset({"eval"}),
    "capture_content": "NO_CONTENT",
    "content_length": 4096,
    "local_model_name": "basename",
    "children_max": 64,
    "queue_max": 2048,
    "token_points_max": 16,
    "models_max": 100,
    "metrics": True,
    "process_stats": True,
    "measure": frozenset(MEASURES),
    "gpu_timers_max": 2048,
    "layers": "",
    "layers_every": 1,
    "layers_max": 128,
    "profile": "standard",
    "flush_timeout": 30.0,
    "flush_at_rest": "auto",
    "fast_path": True,
    "latest_conventions": False,
    "devices": "auto",
    "devices_detail": frozenset(),
    "devices_interval": 1.0,
    "devices_lock": "",
    "ranks": frozenset(),
}

# Variable, text, field, value. At least one for each row of SETTINGS.
TAKEN = [
    ("INFERSPAN_PROFILE", " Standard ", "profile", "standard"),
    ("INFERSPAN_HOOKS", " pipelines , models ", "hooks", frozenset({"pipelines", "models"})),
    ("INFERSPAN_HOOKS", ",", "hooks", frozenset()),
    ("INFERSPAN_MODULES", "eval, shop.models.Ranker", "modules", frozenset({"eval", "shop.models.Ranker"})),
    ("INFERSPAN_MODULES", ",", "modules", frozenset()),
    (CONTENT, "span_only", "capture_content", "SPAN_ONLY"),
    (CONTENT, "NO_CONTENT", "capture_content", "NO_CONTENT"),
    (CONTENT, " EVENT_ONLY ", "capture_content", "EVENT_ONLY"),
    (CONTENT, "SPAN_AND_EVENT", "capture_content", "SPAN_AND_EVENT"),
    ("INFERSPAN_CONTENT_LENGTH", "1", "content_length", 1),
    ("INFERSPAN_CONTENT_LENGTH", "1000000", "content_length", 1_000_000),
    ("INFERSPAN_LOCAL_MODEL_NAME", "Class", "local_model_name", "class"),
    ("INFERSPAN_CHILDREN_MAX", "0", "children_max", 0),
    ("INFERSPAN_CHILDREN_MAX", "10000", "children_max", 10_000),
    ("INFERSPAN_QUEUE_MAX", "1", "queue_max", 1),
    ("INFERSPAN_QUEUE_MAX", "1000000", "queue_max", 1_000_000),
    ("INFERSPAN_TOKEN_POINTS_MAX", "0", "token_points_max", 0),
    ("INFERSPAN_TOKEN_POINTS_MAX", "1024", "token_points_max", 1024),
    ("INFERSPAN_MODELS_MAX", "1", "models_max", 1),
    ("INFERSPAN_MODELS_MAX", "2000", "models_max", 2000),
    ("INFERSPAN_METRICS", "FALSE", "metrics", False),
    ("INFERSPAN_PROCESS_STATS", "false", "process_stats", False),
    ("INFERSPAN_MEASURE", "flops, host_allocations", "measure", frozenset({"flops", "host_allocations"})),
    ("INFERSPAN_MEASURE", ",", "measure", frozenset()),
    ("INFERSPAN_GPU_TIMERS_MAX", "0", "gpu_timers_max", 0),
    ("INFERSPAN_LAYERS", " transformer ", "layers", "transformer"),
    ("INFERSPAN_LAYERS_EVERY", "1", "layers_every", 1),
    ("INFERSPAN_LAYERS_EVERY", "1000000", "layers_every", 1_000_000),
    ("INFERSPAN_LAYERS_MAX", "1", "layers_max", 1),
    ("INFERSPAN_LAYERS_MAX", "10000", "layers_max", 10_000),
    ("INFERSPAN_FLUSH_TIMEOUT", "0", "flush_timeout", 0.0),
    ("INFERSPAN_FLUSH_AT_REST", "Always", "flush_at_rest", "always"),
    ("INFERSPAN_FLUSH_AT_REST", "never", "flush_at_rest", "never"),
    ("INFERSPAN_FLUSH_TIMEOUT", "2.5", "flush_timeout", 2.5),
    ("INFERSPAN_FLUSH_TIMEOUT", "3600", "flush_timeout", 3600.0),
    ("INFERSPAN_FAST_PATH", "False", "fast_path", False),
    (OPT_IN, "http, gen_ai_latest_experimental", "latest_conventions", True),
    (OPT_IN, "http/dup", "latest_conventions", False),
    ("INFERSPAN_DEVICES", "Always", "devices", "always"),
    ("INFERSPAN_DEVICES", "never", "devices", "never"),
    ("INFERSPAN_DEVICES_DETAIL", "slow, xid", "devices_detail", frozenset({"slow", "xid"})),
    ("INFERSPAN_DEVICES_INTERVAL", "0.5", "devices_interval", 0.5),
    ("INFERSPAN_DEVICES_INTERVAL", "60", "devices_interval", 60.0),
    ("INFERSPAN_DEVICES_LOCK", "/run/gpu.lock", "devices_lock", "/run/gpu.lock"),
    ("INFERSPAN_RANKS", "0", "ranks", frozenset({0})),
    ("INFERSPAN_RANKS", " 0 , 4-6,65535", "ranks", frozenset({0, 4, 5, 6, 65535})),
    ("INFERSPAN_RANKS", ",", "ranks", frozenset()),
]

# Variable, text, what is allowed, what is used instead. OTEL_SEMCONV_STABILITY_OPT_IN is shared with other
# instrumentations, so that nothing in it is wrong to us.
REFUSED = [
    ("INFERSPAN_HOOKS", "pipelines,piplines", HOOKS_ALLOWED, repr(HOOKS_DEFAULT)),
    (CONTENT, "true", "NO_CONTENT, SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT", "'NO_CONTENT'"),
    ("INFERSPAN_CONTENT_LENGTH", "0", "1 to 1000000", "4096"),
    ("INFERSPAN_CONTENT_LENGTH", "many", "1 to 1000000", "4096"),
    ("INFERSPAN_LOCAL_MODEL_NAME", "hidden", "basename, class", "'basename'"),
    ("INFERSPAN_CHILDREN_MAX", "-1", "0 to 10000", "64"),
    ("INFERSPAN_CHILDREN_MAX", "10001", "0 to 10000", "64"),
    ("INFERSPAN_CHILDREN_MAX", "1.5", "0 to 10000", "64"),
    ("INFERSPAN_QUEUE_MAX", "0", "1 to 1000000", "2048"),
    ("INFERSPAN_TOKEN_POINTS_MAX", "1025", "0 to 1024", "16"),
    ("INFERSPAN_MODELS_MAX", "2001", "1 to 2000", "100"),
    ("INFERSPAN_METRICS", "1", "true, false", "True"),
    ("INFERSPAN_PROCESS_STATS", "yes", "true, false", "True"),
    ("INFERSPAN_MEASURE", "flop", MEASURE_ALLOWED, "'compiles,energy,flops,gpu_time,leaks,memory'"),
    ("INFERSPAN_GPU_TIMERS_MAX", "100001", "0 to 100000", "2048"),
    ("INFERSPAN_LAYERS_EVERY", "0", "1 to 1000000", "1"),
    ("INFERSPAN_LAYERS_MAX", "0", "1 to 10000", "128"),
    ("INFERSPAN_PROFILE", "thin", "lean, standard, full", "'standard'"),
    ("INFERSPAN_FLUSH_AT_REST", "sometimes", "auto, always, never", "'auto'"),
    ("INFERSPAN_FLUSH_TIMEOUT", "-1", "0 to 3600 seconds", "30.0"),
    ("INFERSPAN_FLUSH_TIMEOUT", "3601", "0 to 3600 seconds", "30.0"),
    ("INFERSPAN_FLUSH_TIMEOUT", "nan", "0 to 3600 seconds", "30.0"),
    ("INFERSPAN_FLUSH_TIMEOUT", "inf", "0 to 3600 seconds", "30.0"),
    ("INFERSPAN_FLUSH_TIMEOUT", "30s", "0 to 3600 seconds", "30.0"),
    ("INFERSPAN_FAST_PATH", "off", "true, false", "True"),
    ("INFERSPAN_DEVICES", "sometimes", "auto, always, never", "'auto'"),
    ("INFERSPAN_DEVICES_DETAIL", "fast", "comma list of slow, gpm, xid", "''"),
    ("INFERSPAN_DEVICES_INTERVAL", "0.1", "0.5 to 60 seconds", "1.0"),
    ("INFERSPAN_RANKS", "first", RANKS_ALLOWED, "''"),
    ("INFERSPAN_RANKS", "4-0", RANKS_ALLOWED, "''"),
    ("INFERSPAN_RANKS", "-1", RANKS_ALLOWED, "''"),
    ("INFERSPAN_RANKS", "0-65536", RANKS_ALLOWED, "''"),
]

# Keyword, value, the setting. At least one for each row of SETTINGS.
KEYWORDS_TAKEN = [
    ("hooks", ["models"], frozenset({"models"})),
    ("hooks", frozenset(), frozenset()),
    ("hooks", "models,loading", frozenset({"models", "loading"})),
    ("modules", ["eval", "Ranker"], frozenset({"eval", "Ranker"})),
    ("modules", (), frozenset()),
    ("capture_content", "SPAN_ONLY", "SPAN_ONLY"),
    ("content_length", 10, 10),
    ("content_length", "10", 10),
    ("local_model_name", "class", "class"),
    ("children_max", 0, 0),
    ("queue_max", 7, 7),
    ("token_points_max", 8, 8),
    ("models_max", 9, 9),
    ("metrics", False, False),
    ("metrics", "false", False),
    ("process_stats", False, False),
    ("measure", ["flops"], frozenset({"flops"})),
    ("gpu_timers_max", 5, 5),
    ("layers", 2, "2"),
    ("layers_every", 100, 100),
    ("layers_max", 6, 6),
    ("profile", "full", "full"),
    ("flush_at_rest", "always", "always"),
    ("flush_timeout", 1, 1.0),
    ("flush_timeout", 0.25, 0.25),
    ("fast_path", False, False),
    ("latest_conventions", True, True),
    ("latest_conventions", "gen_ai_latest_experimental", True),
    ("devices", "never", "never"),
    ("devices_detail", ["gpm"], frozenset({"gpm"})),
    ("devices_interval", 2, 2.0),
    ("devices_lock", "x", "x"),
    ("ranks", 0, frozenset({0})),
    ("ranks", [0, 3], frozenset({0, 3})),
    ("ranks", (), frozenset()),
    ("ranks", "0-2", frozenset({0, 1, 2})),
]

KEYWORDS_REFUSED = [
    ("hooks", ["pipeline"]),
    ("hooks", True),
    ("hooks", 1),
    ("hooks", None),
    ("hooks", [1]),
    ("capture_content", True),
    ("capture_content", "yes"),
    ("content_length", 0),
    ("content_length", None),
    ("local_model_name", "path"),
    ("children_max", True),
    ("children_max", -1),
    ("children_max", 1.5),
    ("queue_max", 0),
    ("token_points_max", "all"),
    ("models_max", False),
    ("metrics", 1),
    ("metrics", "on"),
    ("metrics", None),
    ("process_stats", 0),
    ("measure", ["flop"]),
    ("modules", True),
    ("gpu_timers_max", -1),
    ("layers", True),
    ("layers_every", 0),
    ("layers_max", 0),
    ("profile", "fast"),
    ("flush_at_rest", True),
    ("flush_timeout", True),
    ("flush_timeout", float("nan")),
    ("fast_path", 0),
    ("latest_conventions", 1),
    ("devices", True),
    ("devices_detail", ["fast"]),
    ("devices_interval", 0.1),
    ("devices_lock", True),
    ("ranks", True),
    ("ranks", -1),
    ("ranks", None),
]


def warned(environ: Mapping[str, str], **keywords: Any) -> tuple[Settings, list[str]]:
    """The settings, and the texts of the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = load(keywords, environ)
    assert {warning.category for warning in caught} <= {inferspan.InferspanWarning}
    return settings, [str(warning.message) for warning in caught]


def differing(settings: Settings) -> dict[str, Any]:
    """The fields that are not at their default."""
    return {name: getattr(settings, name) for name in DEFAULTS if getattr(settings, name) != DEFAULTS[name]}


def named(rows: list[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[0]}={row[1]!r}") for row in rows]


def test_settings_from_nothing_are_the_defaults() -> None:
    settings, said = warned({})

    assert {name: getattr(settings, name) for name in settings.__slots__} == DEFAULTS
    assert said == []


def test_tables_of_this_file_cover_every_row() -> None:
    variables = {setting.variable for setting in SETTINGS}
    fields = {setting.field for setting in SETTINGS}

    assert {row[0] for row in TAKEN} == variables
    assert {row[0] for row in REFUSED} == variables - {OPT_IN, *ANY_TEXT}
    assert {row[0] for row in KEYWORDS_TAKEN} == fields == set(DEFAULTS)
    assert {row[0] for row in KEYWORDS_REFUSED} == fields


@pytest.mark.parametrize(("variable", "text", "field", "value"), named(TAKEN))
def test_variable_with_an_allowed_value_is_taken(variable: str, text: str, field: str, value: Any) -> None:
    settings, said = warned({variable: text})

    assert getattr(settings, field) == value
    assert type(getattr(settings, field)) is type(value)
    assert differing(settings).keys() <= {field}
    assert said == []


@pytest.mark.parametrize(("variable", "text", "allowed", "used"), named(REFUSED))
def test_variable_with_a_wrong_value_warns_once_and_is_ignored(
    variable: str, text: str, allowed: str, used: str
) -> None:
    settings, said = warned({variable: text})

    assert said == [f"{variable}={text!r} is not allowed (allowed: {allowed}); {used} is used instead"]
    assert differing(settings) == {}


@pytest.mark.parametrize(
    "setting", [pytest.param(s, id=s.variable) for s in SETTINGS if s.variable.startswith("INFERSPAN_")]
)
def test_variable_with_otel_before_its_name_is_taken(setting: config.Setting) -> None:
    text, value = next((row[1], row[3]) for row in TAKEN if row[0] == setting.variable)
    settings, said = warned({f"OTEL_{setting.variable}": text})

    assert getattr(settings, setting.field) == value
    assert said == []


def test_variable_in_both_forms_is_taken_from_the_shorter() -> None:
    settings, said = warned({"OTEL_INFERSPAN_CHILDREN_MAX": "1", "INFERSPAN_CHILDREN_MAX": "2"})

    assert (settings.children_max, said) == (2, [])


def test_variable_with_otel_before_its_name_is_named_so_where_it_is_wrong() -> None:
    settings, said = warned({"OTEL_INFERSPAN_CHILDREN_MAX": "few"})

    assert said == ["OTEL_INFERSPAN_CHILDREN_MAX='few' is not allowed (allowed: 0 to 10000); 64 is used instead"]
    assert settings.children_max == 64


@pytest.mark.parametrize("text", [pytest.param("", id="empty"), pytest.param("  ", id="blank")])
@pytest.mark.parametrize("setting", [pytest.param(setting, id=setting.variable) for setting in SETTINGS])
def test_variable_that_is_empty_counts_as_unset(setting: config.Setting, text: str) -> None:
    settings, said = warned({setting.variable: text})

    assert (differing(settings), said) == ({}, [])


def test_variable_that_is_empty_leaves_the_other_form_in_force() -> None:
    settings, _ = warned({"INFERSPAN_CHILDREN_MAX": "", "OTEL_INFERSPAN_CHILDREN_MAX": "3"})

    assert settings.children_max == 3


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        pytest.param(
            "INFERSPAN_CHILDRENS_MAX",
            "INFERSPAN_CHILDRENS_MAX is no setting of inferspan (did you mean INFERSPAN_CHILDREN_MAX?); it is ignored",
            id="typing mistake",
        ),
        pytest.param(
            "OTEL_INFERSPAN_HOOK",
            "OTEL_INFERSPAN_HOOK is no setting of inferspan (did you mean OTEL_INFERSPAN_HOOKS?); it is ignored",
            id="with OTEL",
        ),
        pytest.param(
            "INFERSPAN_ZZZZZZZZZZZZZZZZZZZZ",
            "INFERSPAN_ZZZZZZZZZZZZZZZZZZZZ is no setting of inferspan; it is ignored",
            id="near to nothing",
        ),
    ],
)
def test_variable_that_is_unknown_is_warned_of_with_the_nearest(variable: str, message: str) -> None:
    settings, said = warned({variable: "1", "OTEL_TRACES_SAMPLER": "always_on", "PATH": "/bin"})

    assert (said, differing(settings)) == ([message], {})


@pytest.mark.parametrize(("field", "value", "expected"), named(KEYWORDS_TAKEN))
def test_keyword_with_an_allowed_value_is_taken(field: str, value: Any, expected: Any) -> None:
    settings, said = warned({}, **{field: value})

    assert getattr(settings, field) == expected
    assert type(getattr(settings, field)) is type(expected)
    assert said == []


@pytest.mark.parametrize(("field", "value"), named(KEYWORDS_REFUSED))
def test_keyword_with_a_wrong_value_raises(field: str, value: Any) -> None:
    allowed = next(setting.allowed for setting in SETTINGS if setting.field == field)
    with pytest.raises(ValueError, match="is not allowed") as caught:
        load({field: value}, {})

    shown = ",".join(map(str, value)) if isinstance(value, list) else value
    assert str(caught.value) == f"{field}={shown!r} is not allowed (allowed: {allowed})"


def test_profile_changes_the_defaults_of_other_settings() -> None:
    lean, full = config.load({}, {"INFERSPAN_PROFILE": "lean"}), config.load({"profile": "full"}, {})

    assert (lean.metrics, lean.process_stats, lean.measure, lean.devices) == (False, False, {"gpu_time"}, "never")
    assert (full.layers, full.devices_detail) == ("transformer", set(config.DEVICE_DETAILS))
    assert (full.metrics, full.measure) == (True, set(MEASURES))


def test_setting_of_its_own_wins_over_the_profile() -> None:
    environ = {"INFERSPAN_PROFILE": "lean", "INFERSPAN_METRICS": "true"}
    found = config.load({"measure": "flops"}, environ)

    assert (found.metrics, found.measure, found.process_stats) == (True, {"flops"}, False)


def test_wrong_value_is_replaced_by_what_the_profile_says() -> None:
    with pytest.warns(InferspanWarning, match="False is used instead"):
        found = config.load({"profile": "lean"}, {"INFERSPAN_METRICS": "on"})

    assert found.metrics is False


def test_keyword_wins_over_the_environment() -> None:
    settings, said = warned({"INFERSPAN_CHILDREN_MAX": "1"}, children_max=2)

    assert (settings.children_max, said) == (2, [])


def test_keyword_over_a_wrong_variable_is_used_without_a_warning_that_says_otherwise() -> None:
    settings, said = warned({"INFERSPAN_CHILDREN_MAX": "few"}, children_max=2)

    assert (settings.children_max, said) == (2, [])


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        pytest.param(
            "children_maximum",
            "instrument() got an unexpected keyword argument 'children_maximum' (did you mean children_max?)",
            id="near",
        ),
        pytest.param("zzzzzz", "instrument() got an unexpected keyword argument 'zzzzzz'", id="near to nothing"),
    ],
)
def test_keyword_that_is_unknown_raises_with_the_nearest(keyword: str, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        load({keyword: 1}, {})

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        pytest.param({"children_maxi": 1}, TypeError, id="unknown"),
        pytest.param({"children_max": -1}, ValueError, id="wrong value"),
        pytest.param({"tracer_provider": object()}, AttributeError, id="no provider"),
    ],
)
def test_instrument_that_raises_leaves_nothing_instrumented(
    bare_recorder: Recorder, keywords: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        inferspan.instrument(**keywords)

    assert InferspanInstrumentor().is_instrumented_by_opentelemetry is False
    assert current.settings() is None
    with inferspan.inference("nothing"):
        pass
    bare_recorder.instrument()
    with inferspan.inference("something"):
        pass
    assert bare_recorder.trees() == ["something"]


def test_instrument_reads_the_environment_at_that_moment(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERSPAN_CHILDREN_MAX", "5")
    bare_recorder.instrument()
    settings = current.settings()
    assert settings is not None
    monkeypatch.setenv("INFERSPAN_CHILDREN_MAX", "6")

    assert settings.children_max == 5


@pytest.mark.parametrize(
    ("mode", "on_spans", "in_events"),
    [
        pytest.param("NO_CONTENT", False, False, id="none"),
        pytest.param("SPAN_ONLY", True, False, id="spans"),
        pytest.param("EVENT_ONLY", False, True, id="events"),
        pytest.param("SPAN_AND_EVENT", True, True, id="both"),
    ],
)
def test_content_mode_says_where_content_goes(mode: str, on_spans: bool, in_events: bool) -> None:
    settings = Settings(capture_content=mode)

    assert (settings.content_on_spans, settings.content_in_events) == (on_spans, in_events)


def test_environment_variable_module_lists_only_names_of_our_own() -> None:
    from inferspan import environment_variables

    assert sorted(name for name in vars(environment_variables) if name.startswith("OTEL_")) == [
        "OTEL_INFERSPAN_CHILDREN_MAX",
        "OTEL_INFERSPAN_CONTENT_LENGTH",
        "OTEL_INFERSPAN_DEVICES",
        "OTEL_INFERSPAN_DEVICES_DETAIL",
        "OTEL_INFERSPAN_DEVICES_INTERVAL",
        "OTEL_INFERSPAN_DEVICES_LOCK",
        "OTEL_INFERSPAN_FAST_PATH",
        "OTEL_INFERSPAN_FLUSH_AT_REST",
        "OTEL_INFERSPAN_FLUSH_TIMEOUT",
        "OTEL_INFERSPAN_GPU_TIMERS_MAX",
        "OTEL_INFERSPAN_HOOKS",
        "OTEL_INFERSPAN_LAYERS",
        "OTEL_INFERSPAN_LAYERS_EVERY",
        "OTEL_INFERSPAN_LAYERS_MAX",
        "OTEL_INFERSPAN_LOCAL_MODEL_NAME",
        "OTEL_INFERSPAN_MEASURE",
        "OTEL_INFERSPAN_METRICS",
        "OTEL_INFERSPAN_MODELS_MAX",
        "OTEL_INFERSPAN_MODULES",
        "OTEL_INFERSPAN_PROCESS_STATS",
        "OTEL_INFERSPAN_PROFILE",
        "OTEL_INFERSPAN_QUEUE_MAX",
        "OTEL_INFERSPAN_RANKS",
        "OTEL_INFERSPAN_TOKEN_POINTS_MAX",
    ]
