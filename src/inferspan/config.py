"""Every setting once: field, environment variable, default, what is allowed, meaning.

The table ``SETTINGS`` is all there is: :func:`load` parses by it, ``docs/configuration.md`` is generated from it,
and no other file reads ``os.environ``. Settings are read when ``instrument()`` is called and passed on as one
frozen object. A keyword argument wins over the environment. A wrong value in the environment gives one warning and
the default; a wrong keyword argument raises.

``opentelemetry-instrument`` passes its own options on only to variables that begin with ``OTEL_``; each variable
``INFERSPAN_X`` is therefore also read as ``OTEL_INFERSPAN_X`` (``opentelemetry-instrument --inferspan_x``).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from inferspan.faults import warn
from inferspan.integrations import INTEGRATIONS
from inferspan.semconv import LATEST

HOOKS = tuple(row.name for row in INTEGRATIONS if row.is_selectable)
HOOKS_DEFAULT = frozenset(row.name for row in INTEGRATIONS if row.is_selectable and row.default)
MEASURES = ("gpu_time", "memory", "flops", "energy", "leaks", "compiles")
HOST_ALLOCATIONS = "host_allocations"
DEVICE_DETAILS = ("slow", "gpm", "xid")
RANKS_MAX = 65536
PROFILES: Mapping[str, Mapping[str, Any]] = {
    "lean": {"metrics": False, "process_stats": False, "measure": frozenset({"gpu_time"}), "devices": "never"},
    "standard": {},
    "full": {"layers": "transformer", "devices_detail": frozenset(DEVICE_DETAILS)},
}
"""The defaults of settings that a profile changes."""
CONTENT_MODES = ("NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one ``instrument()``; the meaning of each is in ``SETTINGS``."""

    profile: str = "standard"
    hooks: frozenset[str] = HOOKS_DEFAULT
    modules: frozenset[str] = frozenset({"eval"})
    capture_content: str = "NO_CONTENT"
    content_length: int = 4096
    local_model_name: str = "basename"
    children_max: int = 64
    queue_max: int = 2048
    token_points_max: int = 16
    models_max: int = 100
    metrics: bool = True
    process_stats: bool = True
    measure: frozenset[str] = frozenset(MEASURES)
    gpu_timers_max: int = 2048
    layers: str = ""
    layers_every: int = 1
    layers_max: int = 128
    flush_timeout: float = 30.0
    flush_at_rest: str = "auto"
    fast_path: bool = True
    latest_conventions: bool = False
    devices: str = "auto"
    devices_detail: frozenset[str] = frozenset()
    devices_interval: float = 1.0
    devices_lock: str = ""
    ranks: frozenset[int] = frozenset()

    @property
    def content_on_spans(self) -> bool:
        return self.capture_content in ("SPAN_ONLY", "SPAN_AND_EVENT")

    @property
    def content_in_events(self) -> bool:
        return self.capture_content in ("EVENT_ONLY", "SPAN_AND_EVENT")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row. ``parse`` turns text into the value or raises ValueError; ``allowed`` says what it takes."""

    field: str
    variable: str
    parse: Callable[[str], Any]
    allowed: str
    meaning: str


def _names(known: tuple[str, ...]) -> Callable[[str], frozenset[str]]:
    def parse(text: str) -> frozenset[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(unknown[0])
        return frozenset(names)

    return parse


def _list(text: str) -> frozenset[str]:
    return frozenset(filter(None, map(str.strip, text.split(","))))


def _content_mode(text: str) -> str:
    mode = text.strip().upper()
    if mode not in CONTENT_MODES:
        raise ValueError(text)
    return mode


def _one_of(*known: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        name = text.strip().lower()
        if name not in known:
            raise ValueError(text)
        return name

    return parse


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "false"):
        raise ValueError(text)
    return word == "true"


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _ranks(text: str) -> frozenset[int]:
    ranks: set[int] = set()
    for part in filter(str.strip, text.split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < RANKS_MAX:
            raise ValueError(text)
        ranks.update(range(low, high + 1))
    return frozenset(ranks)


def _opted_in(text: str) -> bool:
    return text.strip().lower() == "true" or LATEST in {word.strip() for word in text.split(",")}


# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("profile", "INFERSPAN_PROFILE", _one_of(*PROFILES), ", ".join(PROFILES),
        "How much is recorded, where a setting of its own does not say otherwise. `lean`: traces with tokens, times "
        "and GPU time, no metrics (docs/performance.md has what is saved); `full`: layers and all device details too"),
    Setting("hooks", "INFERSPAN_HOOKS", _names(HOOKS), "comma list of " + ", ".join(HOOKS),
        "Which parts of the libraries are instrumented. Leave out `models` to have no spans for models called directly "
        "(evaluation loops), `modules` to have none for plain torch modules, `tokenizers` to have none for tokenizers "
        "called directly"),
    Setting("modules", "INFERSPAN_MODULES", _list, "comma list of `eval` and names of classes",
        "Which plain torch modules are treated as models. `eval`: those on which `eval()` is called, scripted and "
        "exported ones; a class, by its name or `module.Class`: each instance of it (docs/modules.md)"),
    Setting("capture_content", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", _content_mode,
        ", ".join(CONTENT_MODES),
        "Whether prompts, completions, stop strings and exception messages are recorded, and where"),
    Setting("content_length", "INFERSPAN_CONTENT_LENGTH", _integer(1, 1000000), "1 to 1000000",
        "Characters kept of each recorded text"),
    Setting("local_model_name", "INFERSPAN_LOCAL_MODEL_NAME", _one_of("basename", "class"), "basename, class",
        "The name of a model in a local folder: the last part of its path, or its class if even that is secret"),
    Setting("children_max", "INFERSPAN_CHILDREN_MAX", _integer(0, 10000), "0 to 10000",
        "Most child spans of one inference; the rest is only in its sums and metrics"),
    Setting("queue_max", "INFERSPAN_QUEUE_MAX", _integer(1, 1000000), "1 to 1000000",
        "Most finished inferences that wait for the background worker; beyond that, children are dropped and counted"),
    Setting("token_points_max", "INFERSPAN_TOKEN_POINTS_MAX", _integer(0, 1024), "0 to 1024",
        "Most points that one generation adds to the histogram `inferspan.inter_token.duration`"),
    Setting("models_max", "INFERSPAN_MODELS_MAX", _integer(1, 2000), "1 to 2000",
        "Most different model names on metrics of this process; the rest is `_OTHER`"),
    Setting("metrics", "INFERSPAN_METRICS", _boolean, "true, false", "Whether metrics are recorded"),
    Setting("process_stats", "INFERSPAN_PROCESS_STATS", _boolean, "true, false",
        "Whether CPU time and resident memory of the process are read at each inference"),
    Setting("measure", "INFERSPAN_MEASURE", _names((*MEASURES, HOST_ALLOCATIONS)),
        "comma list of " + ", ".join((*MEASURES, HOST_ALLOCATIONS)),
        "What is measured of each inference: `gpu_time` by events, `memory` of the device's allocator, `flops` in "
        "closed form, `energy` and clock of the board, `leaks` by a trend test, `compiles` of torch.compile. Off by "
        "default: `host_allocations`, Python's own by phase, since `tracemalloc` slows the program down"),
    Setting("gpu_timers_max", "INFERSPAN_GPU_TIMERS_MAX", _integer(0, 100000), "0 to 100000",
        "Most phases that are timed on one GPU at once, with up to three events each; beyond that, GPU time is absent"),
    Setting("layers", "INFERSPAN_LAYERS", str.strip, "`transformer`, a depth, or comma list of patterns",
        "Layers that get a span each, for all of their calls in an inference: `transformer` finds the repeated blocks "
        "of a model, a number takes the modules at that depth, a pattern (`*.mlp`) those with such a name "
        "(docs/modules.md). Empty: none"),
    Setting("layers_every", "INFERSPAN_LAYERS_EVERY", _integer(1, 1000000), "1 to 1000000",
        "Layers are recorded in one of this many inferences of a model, counted among those whose trace is recorded"),
    Setting("layers_max", "INFERSPAN_LAYERS_MAX", _integer(1, 10000), "1 to 10000",
        "Most layers of one model that are recorded; the rest is left out, with a warning"),
    Setting("flush_timeout", "INFERSPAN_FLUSH_TIMEOUT", _seconds(0, 3600), "0 to 3600 seconds",
        "How long exit, `uninstrument()` and the providers' own flush may wait for finished inferences to be exported"),
    Setting("flush_at_rest", "INFERSPAN_FLUSH_AT_REST", _one_of("auto", "always", "never"), "auto, always, never",
        "Whether the providers are flushed when nothing has run for 200 ms, so that a process that is killed then has "
        "lost nothing. `auto`: in processes that are ended without a word (workers of Ray, Spark, Celery and "
        "`multiprocessing`, AWS Lambda)"),
    Setting("fast_path", "INFERSPAN_FAST_PATH", _boolean, "true, false",
        "Whether spans and metric points bypass the public API of OpenTelemetry's SDK where the result is the same; if "
        "false, each costs about four times as much"),
    Setting("latest_conventions", "OTEL_SEMCONV_STABILITY_OPT_IN", _opted_in,
        "comma list; `gen_ai_latest_experimental` switches",
        "Emit the newest names of the GenAI conventions in place of those in the released package"),
    Setting("devices", "INFERSPAN_DEVICES", _one_of("auto", "always", "never"), "auto, always, never",
        "`auto`: one process reports each GPU and the host, or a running `inferspan agent` does; `always`: every "
        "process reports them; `never`: this process exports no device, host or process metrics"),
    Setting("devices_detail", "INFERSPAN_DEVICES_DETAIL", _names(DEVICE_DETAILS),
        "comma list of " + ", ".join(DEVICE_DETAILS),
        "What is read in addition: `slow` (processes, PCIe throughput, fan, ECC by memory; blocks 40 ms a GPU), `gpm` "
        "(SM occupancy, tensor cores; from Hopper on), `xid` (the driver's error events, read by a waiting thread)"),
    Setting("devices_interval", "INFERSPAN_DEVICES_INTERVAL", _seconds(0.5, 60), "0.5 to 60 seconds",
        "How old a reading may be to be reported again. Less makes no sense: the driver's own samples are as old, and "
        "its lock delays the program's kernels"),
    Setting("devices_lock", "INFERSPAN_DEVICES_LOCK", str.strip, "a path",
        "File by which the processes of a host agree on who reports; empty: `inferspan-devices.lock` in the folder for "
        "temporary files. Put it on a shared volume where containers share GPUs"),
    Setting("ranks", "INFERSPAN_RANKS", _ranks, f"comma list of ranks and ranges such as 0,4-7, below {RANKS_MAX}",
        "The ranks of a distributed run that record inferences; empty: all. Use `0` if the ranks compute one inference "
        "together (docs/distributed.md)"),
)
# fmt: on


def load(keywords: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment and, over them, from ``instrument()``'s keyword arguments.

    Raises:
        TypeError: a keyword that is no setting.
        ValueError: a keyword with a value that is not allowed.
    """
    environ = os.environ if environ is None else environ
    by_field = {setting.field: setting for setting in SETTINGS}
    given: dict[str, Any] = {}
    for name, value in keywords.items():
        if name not in by_field:
            raise TypeError(f"instrument() got an unexpected keyword argument {name!r}{_nearest(name, by_field)}")
        given[name] = _from_keyword(by_field[name], value)
    values: dict[str, Any] = {}
    for setting in SETTINGS:  # the profile first: it says what the others are by default
        default = PROFILES[values.get("profile", "standard")].get(setting.field, default_of(setting))
        found = given.get(setting.field)
        values[setting.field] = _from_environment(setting, environ, default) if found is None else found
    _warn_of_unknown(environ)
    return Settings(**values)


def default_of(setting: Setting) -> Any:
    """The default of one row, as ``Settings`` declares it."""
    return next(field.default for field in fields(Settings) if field.name == setting.field)


def _from_environment(setting: Setting, environ: Mapping[str, str], default: Any) -> Any:
    for variable in variables(setting):
        text = environ.get(variable)
        if text is None or not text.strip():
            continue
        try:
            return setting.parse(text)
        except ValueError:
            shown = ",".join(sorted(default)) if isinstance(default, frozenset) else default
            warn(f"{variable}={text!r} is not allowed (allowed: {setting.allowed}); {shown!r} is used instead")
            return default
    return default


def _from_keyword(setting: Setting, value: Any) -> Any:
    default = default_of(setting)
    if isinstance(default, frozenset) and isinstance(value, (frozenset, set, list, tuple)):
        value = ",".join(map(str, value))
    # bool is an int to Python: hooks=True or children_max=True would otherwise pass
    if isinstance(value, bool) is not isinstance(default, bool):
        if not isinstance(value, str):
            raise ValueError(f"{setting.field}={value!r} is not allowed (allowed: {setting.allowed})")
    elif isinstance(value, bool):
        return value
    try:
        return setting.parse(str(value))
    except ValueError:
        raise ValueError(f"{setting.field}={value!r} is not allowed (allowed: {setting.allowed})") from None


def variables(setting: Setting) -> tuple[str, ...]:
    """The environment variables that set this row, the first one wins."""
    if setting.variable.startswith("OTEL_"):
        return (setting.variable,)
    return (setting.variable, f"OTEL_{setting.variable}")


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    known = {variable for setting in SETTINGS for variable in variables(setting)}
    for variable in environ:
        if variable.startswith(("INFERSPAN_", "OTEL_INFERSPAN_")) and variable not in known:
            warn(f"{variable} is no setting of inferspan{_nearest(variable, known)}; it is ignored")


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
