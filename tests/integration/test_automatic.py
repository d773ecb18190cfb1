"""``opentelemetry-instrument``, as a user starts it: no line of code, and the same as with one.

Needs the installed distribution, since entry points are read from its metadata; run from a bare source tree these
tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]

# What the console script `opentelemetry-instrument` does, for environments that have no such script in their bin.
INSTRUMENT = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"

CLASSIFY = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import transformers
from support import tiny
pipe = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
pipe("A good film")
"""

GENERATE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import transformers
from support import tiny
pipe = transformers.pipeline("text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer())
pipe("A good film", max_new_tokens=4, min_new_tokens=4, do_sample=False)
tiny.word_tokenizer()("A good film")
with __import__("inferspan").inference("answer") as block, block.phase("think"):
    pass
"""

# Ends a program: prints its spans as (trace, id, parent, name).
PRINT_SPANS = """
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

class Lines(SpanExporter):
    def export(self, spans):
        for span in spans:
            parent = span.parent.span_id if span.parent else 0
            print("span", span.context.trace_id, span.context.span_id, parent, span.start_time, span.name, sep="|")
        return SpanExportResult.SUCCESS
"""


def _why_not() -> str:
    for group, name in (("opentelemetry_instrumentor", "inferspan"), ("opentelemetry_configurator", None)):
        found = entry_points(group=group) if name is None else entry_points(group=group, name=name)
        if not list(found):
            return f"no entry point {name or ''} in {group}: install inferspan[otlp] to run these"
    return ""


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "installed")


def run(code: str, *options: str, automatic: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """``python -c code``, started by ``opentelemetry-instrument`` with these options."""
    defaults = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    defaults["TRANSFORMERS_VERBOSITY"] = "error"
    command = [sys.executable, "-c", code]
    if automatic:
        command = [sys.executable, "-c", INSTRUMENT, *options, *command]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **defaults, **environ}
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def shape(waterfall: str) -> str:
    """A drawing without what differs from run to run: ids, bars, times, and how much room they leave for a name."""
    lines = []
    for line in waterfall.splitlines():
        bare = re.sub(r"trace [0-9a-f]{8}…", "trace …", line)
        bare = re.sub(r"[▏▎▍▌▋▊▉█▐▕]+", "", bare)
        bare = re.sub(r"[0-9.]+ (µs|ms|s)\b", "…", bare)
        bare = re.sub(r"BertFor\w*…?", "Bert", bare)
        lines.append(re.sub(r"\s+", " ", bare).strip())
    return "\n".join(lines).strip()


def trees(printed: str) -> list[Any]:
    """The traces in the output of PRINT_SPANS, as nested tuples of names."""
    spans = [line.split("|") for line in printed.splitlines() if line.startswith("span|")]
    spans.sort(key=lambda span: (int(span[4]), int(span[3]) != 0))

    def tree(span: list[str]) -> Any:
        below = [tree(other) for other in spans if other[3] == span[2]]
        return (span[5], *below) if below else span[5]

    return [tree(span) for span in spans if span[3] == "0"]


def test_waterfall_without_a_line_of_code() -> None:
    done = run(CLASSIFY, OTEL_TRACES_EXPORTER="inferspan_console")

    drawn = re.sub(r"[\d.]+ [KMG]FLOP/s", "? FLOP/s", shape(done.stdout + done.stderr))
    assert drawn == (
        "trace … · …\ntext-classification Bert … 7 tokens in · cold\n├─ tokenize …\n├─ forward … ? FLOP/s\n"
        "└─ detokenize …"
    )


def test_disabled_by_name_gives_nothing() -> None:
    done = run(CLASSIFY, OTEL_TRACES_EXPORTER="inferspan_console", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="inferspan")

    assert (done.stdout, "trace" in done.stderr) == ("", False)


def test_spans_are_those_of_instrument() -> None:
    automatic = run(
        PRINT_SPANS + "trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(Lines()))" + GENERATE
    )
    by_hand = run(
        PRINT_SPANS
        + textwrap.dedent("""
        from opentelemetry.sdk.trace import TracerProvider
        import inferspan
        inferspan.instrument()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(Lines()))
        trace.set_tracer_provider(provider)
        """)
        + GENERATE,
        automatic=False,
    )
    expected = [
        ("text_completion LlamaForCausalLM", "tokenize", ("forward", "prefill", "decode"), "detokenize"),
        "tokenize",
        ("answer", "think"),
    ]

    assert trees(automatic.stdout) == expected
    assert trees(by_hand.stdout) == expected


def test_id_generator_chosen_by_name_is_ours() -> None:
    code = "from opentelemetry import trace; print(type(trace.get_tracer_provider().id_generator).__name__)"

    assert run(code, OTEL_PYTHON_ID_GENERATOR="inferspan").stdout == "IndependentIdGenerator\n"
    assert run(code).stdout == "RandomIdGenerator\n"


@pytest.mark.parametrize("exporter", ["none", "inferspan_console"])
def test_program_without_models_imports_nothing_and_starts_no_thread_of_ours(exporter: str) -> None:
    code = textwrap.dedent("""
    import sys, threading
    heavy = ("torch", "transformers", "pynvml", "numpy", "tokenizers", "rich")
    print([name for name in heavy if name in sys.modules])
    print("inferspan" in sys.modules, [thread.name for thread in threading.enumerate() if "inferspan" in thread.name])
    """)
    done = run(code, OTEL_TRACES_EXPORTER=exporter)

    assert (done.stdout, done.stderr) == ("[]\nTrue []\n", "")


SETTINGS = textwrap.dedent("""
from inferspan.core import current
settings = current.settings()
print(settings.children_max, settings.metrics, sorted(settings.hooks))
""")


def test_options_on_the_command_line_arrive() -> None:
    done = run(
        SETTINGS,
        *("--inferspan_children_max", "7"),
        *("--inferspan_metrics", "false"),
        *("--inferspan_hooks", "models,loading"),
    )

    assert (done.stdout, done.stderr) == ("7 False ['loading', 'models']\n", "")


def test_variables_arrive() -> None:
    done = run(SETTINGS, INFERSPAN_CHILDREN_MAX="8", OTEL_INFERSPAN_HOOKS="models")

    assert (done.stdout, done.stderr) == ("8 True ['models']\n", "")


def test_variable_with_a_wrong_value_is_warned_of_and_the_program_runs() -> None:
    done = run(SETTINGS, INFERSPAN_CHILDREN_MAX="many", OTEL_INFERSPAN_HOOKS="models")

    assert done.stdout == "64 True ['models']\n"
    assert [line for line in done.stderr.splitlines() if "InferspanWarning" in line] == [
        line for line in done.stderr.splitlines() if "INFERSPAN_CHILDREN_MAX='many' is not allowed" in line
    ]
    assert "(allowed: 0 to 10000); 64 is used instead" in done.stderr


def test_help_lists_each_option_once() -> None:
    done = run("pass", "--help")

    options = re.findall(r"^  --(inferspan_\w+|semconv_stability_opt_in)", done.stdout, re.MULTILINE)
    assert sorted(set(options)) == sorted(options)
    assert [option for option in options if option.startswith("inferspan_")] == [
        "inferspan_children_max",
        "inferspan_content_length",
        "inferspan_devices",
        "inferspan_devices_detail",
        "inferspan_devices_interval",
        "inferspan_devices_lock",
        "inferspan_fast_path",
        "inferspan_flush_at_rest",
        "inferspan_flush_timeout",
        "inferspan_gpu_timers_max",
        "inferspan_hooks",
        "inferspan_layers",
        "inferspan_layers_every",
        "inferspan_layers_max",
        "inferspan_local_model_name",
        "inferspan_measure",
        "inferspan_metrics",
        "inferspan_models_max",
        "inferspan_modules",
        "inferspan_process_stats",
        "inferspan_profile",
        "inferspan_queue_max",
        "inferspan_ranks",
        "inferspan_token_points_max",
    ]
