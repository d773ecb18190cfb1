"""Drawings compared as whole texts. Times are milliseconds after an arbitrary beginning."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import textwrap
import threading
from collections.abc import Mapping
from typing import IO, Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, set_span_in_context

from inferspan import faults, semconv
from inferspan.exporters import console
from inferspan.exporters.console import WaterfallSpanExporter

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
OTHER_TRACE = 0x0AF7651916CD43DD8448EB211C80319C
BEGINNING_NS = 1_700_000_000_000_000_000
SUCCESS, FAILURE = SpanExportResult.SUCCESS, SpanExportResult.FAILURE


def span(
    name: str,
    span_id: int,
    parent_id: int | None,
    times: tuple[float, float],
    attributes: Mapping[str, Any] | None = None,
    *,
    remote: bool = False,
    failed: bool = False,
    trace_id: int = TRACE,
) -> ReadableSpan:
    def context(identity: int, is_remote: bool) -> SpanContext:
        return SpanContext(trace_id, identity, is_remote, TraceFlags(TraceFlags.SAMPLED))

    start, end = (BEGINNING_NS + round(time * 1e6) for time in times)
    return ReadableSpan(
        name,
        context(span_id, False),
        None if parent_id is None else context(parent_id, remote),
        attributes=attributes,
        status=Status(StatusCode.ERROR) if failed else Status(),
        start_time=start,
        end_time=end,
    )


def generation() -> list[ReadableSpan]:
    """In the order of a program: children before their parents, the root last."""
    return [
        span("tokenize", 2, 1, (0, 0.9)),
        span("prefill", 4, 3, (1.2, 61.4)),
        span("decode", 5, 3, (61.4, 805.3), {semconv.DECODE_STEPS: 31}),
        span("forward", 3, 1, (1, 805.1)),
        span("detokenize", 6, 1, (811.9, 812.3)),
        span(
            "text_completion tiny-llama",
            1,
            None,
            (0, 812.4),
            {
                semconv.OPERATION_NAME: "text_completion",
                semconv.REQUEST_MODEL: "tiny-llama",
                semconv.INPUT_TOKENS: 11,
                semconv.OUTPUT_TOKENS: 32,
                semconv.TIME_TO_FIRST_TOKEN: 0.061,
                semconv.TIME_PER_OUTPUT_TOKEN: 0.0239968,
                semconv.BATCH_SIZE: 1,
                semconv.COLD: True,
            },
        ),
    ]


GENERATION = """\
trace 4bf92f35… · 812.4 ms
text_completion tiny-llama  ████████████████████████  812.4 ms  11 → 32 tokens · 41.7 tok/s
│                                                               first token 61.0 ms · cold
├─ tokenize                 ▏                           0.9 ms
├─ forward                  ███████████████████████▊  804.1 ms
│  ├─ prefill               █▉                         60.2 ms
│  └─ decode                 ▕█████████████████████▊  743.9 ms  41.7 steps/s
└─ detokenize                                      ▕    0.4 ms

"""


def drawn(*batches: list[ReadableSpan], width: int = 100) -> str:
    out = io.StringIO()
    exporter = WaterfallSpanExporter(out, width)
    for batch in batches:
        assert exporter.export(batch) is SUCCESS
    return out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A stream that someone put in place of the real one, and that raises what it likes."""

    def write(self, text: str) -> int:
        raise RuntimeError("no")


# What is drawn together


def test_generation_in_one_batch_is_drawn_as_a_waterfall() -> None:
    assert drawn(generation()) == GENERATION


def test_picture_in_the_module_docstring_is_what_is_drawn() -> None:
    assert textwrap.indent(GENERATION, "    ") in (console.__doc__ or "")


@pytest.mark.parametrize("seed", range(5))
def test_generation_in_any_order_within_a_batch_is_drawn_alike(seed: int) -> None:
    spans = generation()
    random.Random(seed).shuffle(spans)

    assert drawn(spans) == GENERATION


def test_generation_split_over_batches_is_drawn_alike() -> None:
    *children, root = generation()

    assert drawn(*([child] for child in children), [root]) == GENERATION


def test_children_before_their_root_are_not_drawn() -> None:
    assert drawn(generation()[:-1]) == ""


def test_error_trace_names_the_error_on_each_failed_span() -> None:
    error = {semconv.ERROR_TYPE: "torch.OutOfMemoryError"}
    spans = [
        span("tokenize", 2, 1, (0, 1.5)),
        span("forward", 3, 1, (1.5, 20), error, failed=True),
        span("postprocess", 4, 1, (20, 20.5), failed=True),
        span("chat org/model", 1, None, (0, 20.5), {semconv.INPUT_TOKENS: 9, **error}, failed=True),
    ]

    assert (
        drawn(spans, width=100)
        == """\
trace 4bf92f35… · 20.5 ms
chat org/model  ███████████████████████████████  20.5 ms  error torch.OutOfMemoryError · 9 tokens in
├─ tokenize     ██▎                               1.5 ms
├─ forward        ▐███████████████████████████▎  18.5 ms  error torch.OutOfMemoryError
└─ postprocess                                ▐   0.5 ms  error

"""
    )


def test_spans_after_their_root_are_drawn_alone_with_a_note() -> None:
    assert (
        drawn(
            [span("tokenize", 2, 1, (0, 1))],
            [span("chat m", 1, None, (0, 10))],
            [span("join", 4, 3, (11, 12)), span("detokenize", 3, 1, (10, 12))],
            [span("lost", 6, 5, (12, 13))],
            width=80,
        )
        == """\
trace 4bf92f35… · 10.0 ms
chat m       ████████████████████████████████████████████████  10.0 ms
└─ tokenize  ████▊                                              1.0 ms

trace 4bf92f35… · 2.0 ms · late: the rest of this trace is drawn above
detokenize  ████████████████████████████████████████████████  2.0 ms
└─ join                             ████████████████████████  1.0 ms

trace 4bf92f35… · 1.0 ms · late: the rest of this trace is drawn above
lost  ████████████████████████████████████████████████  1.0 ms

"""
    )


def test_span_with_a_remote_parent_is_drawn_with_what_is_below_it_only() -> None:
    assert (
        drawn(
            [span("tokenize", 12, 11, (1, 2)), span("tokenize", 22, 21, (0, 4))],
            [span("POST /a", 11, 99, (0, 8), remote=True)],
            [span("POST /b", 21, 99, (0, 16), remote=True)],
            width=80,
        )
        == """\
trace 4bf92f35… · 8.0 ms · parent in another process
POST /a      ████████████████████████████████████████████████  8.0 ms
└─ tokenize        ██████                                      1.0 ms

trace 4bf92f35… · 16.0 ms · parent in another process
POST /b      ████████████████████████████████████████████████  16.0 ms
└─ tokenize  ████████████                                       4.0 ms

"""
    )


def test_span_with_a_remote_parent_of_the_same_process_is_drawn_below_it() -> None:
    spans = [
        span("chat m", 3, 2, (4, 8), remote=True),
        span("POST /a", 2, 1, (2, 8)),
        span("main", 1, None, (0, 8)),
    ]

    assert (
        drawn(spans, width=80)
        == """\
trace 4bf92f35… · 8.0 ms
main          ████████████████████████████████████████████████  8.0 ms
└─ POST /a                ████████████████████████████████████  6.0 ms
   └─ chat m                          ████████████████████████  4.0 ms

"""
    )


def test_span_whose_parent_did_not_come_is_drawn_beside_the_root() -> None:
    spans = [span("child of a dropped span", 3, 2, (4, 8)), span("main", 1, None, (0, 8))]

    assert (
        drawn(spans, width=80)
        == """\
trace 4bf92f35… · 8.0 ms · with spans whose parent did not come
main                     █████████████████████████████████████████████  8.0 ms
child of a dropped span                        ▐██████████████████████  4.0 ms

"""
    )


def test_traces_interleaved_are_drawn_apart() -> None:
    assert (
        drawn(
            [span("tokenize", 2, 1, (0, 1)), span("tokenize", 2, 1, (5, 7), trace_id=OTHER_TRACE)],
            [span("b", 1, None, (3, 7), trace_id=OTHER_TRACE), span("a", 1, None, (0, 2))],
            width=80,
        )
        == """\
trace 0af76519… · 4.0 ms
b            ████████████████████████████████████████████████  4.0 ms
└─ tokenize                          ████████████████████████  2.0 ms

trace 4bf92f35… · 2.0 ms
a            ████████████████████████████████████████████████  2.0 ms
└─ tokenize  ████████████████████████                          1.0 ms

"""
    )


UNFINISHED = """\
trace 4bf92f35… · 4.0 ms · root not finished
forward     ████████████████████████████████████████████████  4.0 ms
└─ prefill  ████████████                                      1.0 ms

"""


def unfinished() -> list[ReadableSpan]:
    return [span("prefill", 3, 2, (0, 1)), span("forward", 2, 1, (0, 4))]


def test_exporter_when_flushed_draws_what_waits_and_the_root_later() -> None:
    out = io.StringIO()
    exporter = WaterfallSpanExporter(out, 80)
    exporter.export(unfinished())

    assert (exporter.force_flush(), exporter.force_flush()) == (True, True)
    assert exporter.export([span("chat m", 1, None, (0, 5))]) is SUCCESS
    assert (
        out.getvalue()
        == UNFINISHED
        + """\
trace 4bf92f35… · 5.0 ms
chat m  ████████████████████████████████████████████████  5.0 ms

"""
    )


def test_exporter_when_shut_down_draws_what_waits_and_takes_no_more() -> None:
    out = io.StringIO()
    exporter = WaterfallSpanExporter(out, 80)
    exporter.export(unfinished())
    exporter.shutdown()

    assert exporter.export(generation()) is FAILURE
    assert out.getvalue() == UNFINISHED


def test_exporter_with_too_many_traces_draws_the_oldest_as_they_are() -> None:
    newer = [span("tokenize", 2, 1, (0, 1), trace_id=trace_id) for trace_id in range(1, 129)]

    assert drawn(unfinished(), newer, width=80) == UNFINISHED


def test_exporter_with_too_many_spans_draws_the_oldest_as_they_are() -> None:
    newer = [span("step", 2 + n, 1, (n, n + 1), trace_id=OTHER_TRACE) for n in range(4095)]

    assert drawn(unfinished(), newer, width=80) == UNFINISHED


def test_spans_that_are_each_others_parents_are_left_out() -> None:
    out = io.StringIO()
    exporter = WaterfallSpanExporter(out, 80)
    exporter.export([span("a", 2, 3, (0, 1)), span("b", 3, 2, (0, 1)), span("self", 4, 4, (0, 1))])

    assert (exporter.force_flush(), out.getvalue()) == (True, "")


def test_trace_thousands_deep_is_drawn() -> None:
    out = drawn([span(f"level {n}", n, n - 1 or None, (0, 1)) for n in range(1, 3001)], width=80)

    lines = out.splitlines()
    assert len(lines) == 3002
    assert lines[-2] == " " * 24 + "└─ level 30…  ████████████████████████████████  1.0 ms"


# What stands in a row


@pytest.mark.parametrize(
    ("attributes", "figures"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({semconv.INPUT_TOKENS: 0}, "  0 tokens in", id="zero is a figure"),
        pytest.param({semconv.OUTPUT_TOKENS: 7}, "  7 tokens out", id="output only"),
        pytest.param(
            {semconv.INPUT_TOKENS: 9, semconv.OUTPUT_TOKENS: 7, semconv.OUTPUT_TOKENS_EXACT: False},
            "  9 → ≤7 tokens",
            id="upper bound",
        ),
        pytest.param(
            {semconv.TIME_PER_OUTPUT_TOKEN: 0.025, semconv.BATCH_SIZE: 8},
            "  40.0 tok/s a row · batch 8",
            id="batch",
        ),
        pytest.param({semconv.REQUEST_MODEL: "org/m"}, "  org/m", id="model not in the name"),
        pytest.param({semconv.REQUEST_MODEL: "work"}, "", id="model in the name"),
        pytest.param({semconv.TIME_TO_FIRST_TOKEN: 0.00004}, "  first token 40 µs", id="microseconds"),
        pytest.param({semconv.TIME_TO_FIRST_TOKEN: 12.345}, "  first token 12.35 s", id="seconds"),
        pytest.param(
            {semconv.ITEMS: 3, semconv.PHASE_CALLS: 4, semconv.PHASE_TIME: 0.003},
            "  3 items · 4 calls · busy 3.0 ms",
            id="several in one",
        ),
        pytest.param(
            {
                semconv.BUSY_TIME: 0.5,
                semconv.CHILDREN_DROPPED: 2,
                semconv.COLD: False,
                semconv.ABANDONED: True,
            },
            "  2 children dropped · busy 500.0 ms · abandoned",
            id="lazy",
        ),
        pytest.param({semconv.ITEMS: 1, semconv.BATCH_SIZE: 1, semconv.PHASE_CALLS: 1}, "", id="ones"),
        pytest.param(
            {semconv.INPUT_TOKENS: "many", semconv.TIME_TO_FIRST_TOKEN: float("nan"), semconv.ITEMS: True},
            "",
            id="not numbers",
        ),
        pytest.param({semconv.DECODE_STEPS: 2}, "  500.0 steps/s", id="steps"),
        pytest.param({semconv.FLOPS: 8_000_000}, "  2 GFLOP/s", id="FLOPs by the host's time"),
        pytest.param(
            {
                semconv.FLOPS: 8_000_000,
                semconv.GPU_TIME: 0.002,
                semconv.FLOPS_UTILIZATION: 0.123,
                semconv.BANDWIDTH_UTILIZATION: 0.6,
            },
            "  GPU 2.0 ms · 4 GFLOP/s · MFU 12% · bandwidth 60%",
            id="device",
        ),
        pytest.param({semconv.MEMORY_PEAK: 3 << 29, semconv.MEMORY_PEAK_EXACT: False}, "  peak ≤1.5 GiB", id="bound"),
        pytest.param({semconv.MEMORY_PEAK: 512, semconv.ENERGY_CONSUMPTION: 2}, "  peak 512 B · 2.0 J", id="small"),
        pytest.param({semconv.COMPILE_TIME: 1.5, semconv.COLD: True}, "  compiled 1.50 s · cold", id="compiled"),
        pytest.param({semconv.TIME_PER_OUTPUT_TOKEN: 0.0, semconv.DECODE_STEPS: 0}, "", id="no rate of zero"),
    ],
)
def test_figures_of_a_span_stand_beside_its_bar(attributes: dict[str, Any], figures: str) -> None:
    assert (
        drawn([span("work", 1, None, (0, 4), attributes)], width=120)
        == f"""\
trace 4bf92f35… · 4.0 ms
work  ████████████████████████████████████████████████  4.0 ms{figures}

"""
    )


def test_many_layers_are_drawn_as_the_slowest_and_the_others() -> None:
    def layer(number: int, seconds: float) -> ReadableSpan:
        parts = {"inferspan.layer.attention.time": seconds / 2, "inferspan.layer.mlp.time": seconds / 4}
        facts = {"inferspan.layer.name": f"h.{number}", "inferspan.phase.calls": 3, "inferspan.phase.time": seconds}
        return span(f"layer h.{number}", number + 3, 1, (number, 80 + number), {**facts, **parts})

    spans = [
        *(layer(number, 0.009 if number in (2, 5) else 0.008 if number > 5 else 0.004) for number in range(12)),
        span("forward", 1, None, (0, 100)),
    ]

    assert (
        drawn(spans, width=110)
        == """\
trace 4bf92f35… · 100.0 ms
forward            ████████████████████████  100.0 ms
├─ 4 other layers  ████████████████████▏      84.0 ms  attention 8.0 ms · MLP 4.0 ms · 12 calls · busy 16.0 ms
├─ layer h.2       ▐██████████████████▋       80.0 ms  attention 4.5 ms · MLP 2.2 ms · 3 calls · busy 9.0 ms
├─ layer h.5        ▐██████████████████▍      80.0 ms  attention 4.5 ms · MLP 2.2 ms · 3 calls · busy 9.0 ms
├─ layer h.6        ▐██████████████████▋      80.0 ms  attention 4.0 ms · MLP 2.0 ms · 3 calls · busy 8.0 ms
├─ layer h.7        ▐██████████████████▉      80.0 ms  attention 4.0 ms · MLP 2.0 ms · 3 calls · busy 8.0 ms
├─ layer h.8        ▕███████████████████▏     80.0 ms  attention 4.0 ms · MLP 2.0 ms · 3 calls · busy 8.0 ms
├─ layer h.9         ███████████████████▍     80.0 ms  attention 4.0 ms · MLP 2.0 ms · 3 calls · busy 8.0 ms
├─ layer h.10        ▐██████████████████▋     80.0 ms  attention 4.0 ms · MLP 2.0 ms · 3 calls · busy 8.0 ms
└─ layer h.11        ▐██████████████████▉     80.0 ms  attention 4.0 ms · MLP 2.0 ms · 3 calls · busy 8.0 ms

"""
    )


def test_figures_on_a_narrow_terminal_go_on_below() -> None:
    assert (
        drawn(generation(), width=70)
        == """\
trace 4bf92f35… · 812.4 ms
text_completion tiny-llama  ███████████  812.4 ms  11 → 32 tokens
│                                                  41.7 tok/s
│                                                  first token 61.0 ms
│                                                  cold
├─ tokenize                 ▏              0.9 ms
├─ forward                  ██████████▉  804.1 ms
│  ├─ prefill               ▉             60.2 ms
│  └─ decode                ▕█████████▉  743.9 ms  41.7 steps/s
└─ detokenize                         ▕    0.4 ms

"""
    )


def test_bars_of_short_spans_are_strokes_where_they_belong() -> None:
    spans = [span(f"at {start}", 2 + n, 1, (start, start + 0.01)) for n, start in enumerate((0, 50, 99.9))]

    assert (
        drawn([*spans, span("root", 1, None, (0, 100))], width=40)
        == """\
trace 4bf92f35… · 100.0 ms
root        ████████████████  100.0 ms
├─ at 0     ▏                    10 µs
├─ at 50            ▏            10 µs
└─ at 99.9                 ▕     10 µs

"""
    )


def test_span_without_duration_is_drawn() -> None:
    assert (
        drawn([span("instant", 1, None, (0, 0))], width=40)
        == """\
trace 4bf92f35… · 0 µs
instant  ███████████████████████  0 µs

"""
    )


def test_span_that_ended_before_it_began_is_drawn() -> None:
    spans = [span("clock set back", 2, 1, (6, 4)), span("root", 1, None, (0, 8))]

    assert (
        drawn(spans, width=40)
        == """\
trace 4bf92f35… · 8.0 ms
root               ████████████   8.0 ms
└─ clock set back           ▏    -2.0 ms

"""
    )


# What a stream can take


def test_text_of_spans_loses_what_a_terminal_would_act_on() -> None:
    attributes = {
        semconv.REQUEST_MODEL: "evil\x1b]0;title\x07\x1b[31m/mo\x9b2Jdel\r\n\u202egnp\ud800",
        semconv.ERROR_TYPE: "Type\u200bError",
    }
    root = span("clear\x1b[2J\tscreen\x08\x00", 1, None, (0, 1), attributes)

    assert (
        drawn([root], [span("\x1b]2;open end", 2, 1, (0, 1))], width=100)
        == """\
trace 4bf92f35… · 1.0 ms
clear screen  ████████████████████████████████████████████  1.0 ms  error TypeError · evil/model gnp

trace 4bf92f35… · 1.0 ms · late: the rest of this trace is drawn above
  ████████████████████████████████████████████████  1.0 ms

"""
    )


def test_text_of_spans_too_long_is_cut() -> None:
    root = span("chat", 1, None, (0, 1), {semconv.ERROR_TYPE: "Name" * 40})

    assert (
        drawn([root], [span("m" * 200, 2, 1, (0, 1))])
        == """\
trace 4bf92f35… · 1.0 ms
chat  ██████████████████  1.0 ms  error NameNameNameNameNameNameNameNameNameNameNameNameNameNameNam…

trace 4bf92f35… · 1.0 ms · late: the rest of this trace is drawn above
mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm…  ████████████████████████████████████████████████  1.0 ms

"""
    )


def test_wide_and_combining_characters_keep_the_columns() -> None:
    spans = [
        span("模型-7B", 2, 1, (0, 4)),
        span("cafe\u0301", 3, 1, (4, 8)),
        span("模" * 70, 4, 1, (7, 8)),
        span("root", 1, None, (0, 8)),
    ]

    assert (
        drawn(spans, width=80)
        == """\
trace 4bf92f35… · 8.0 ms
root                                  ████████████████████████████████  8.0 ms
├─ 模型-7B                            ████████████████                  4.0 ms
├─ cafe\u0301                                               ████████████████  4.0 ms
└─ 模模模模模模模模模模模模模模模模…                              ████  1.0 ms

"""
    )


def written(encoding: str, spans: list[ReadableSpan]) -> str:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    assert WaterfallSpanExporter(out, 100).export(spans) is SUCCESS
    return raw.getvalue().decode(encoding)


def test_stream_of_ascii_gets_ascii() -> None:
    spans = [*generation(), span("模型 naïve", 7, 1, (812, 812.01), {semconv.INPUT_TOKENS_EXACT: False})]

    assert (
        written("ascii", spans)
        == """\
trace 4bf92f35...; 812.4 ms
text_completion tiny-llama  ########################  812.4 ms  11 -> 32 tokens; 41.7 tok/s
|                                                               first token 61.0 ms; cold
|- tokenize                 |                           0.9 ms
|- forward                  ########################  804.1 ms
|  |- prefill               ##                         60.2 ms
|  `- decode                 |######################  743.9 ms  41.7 steps/s
|- detokenize                                      |    0.4 ms
`- ?? na?ve                                        |     10 us

"""
    )


def test_stream_of_latin_1_keeps_the_letters_that_it_has() -> None:
    assert (
        written("latin-1", [span("naïve 模型", 1, None, (0, 1))])
        == """\
trace 4bf92f35...; 1.0 ms
naïve ??  ################################################  1.0 ms

"""
    )


def test_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    spans = [span("tokenize", 2, 1, (0, 1), failed=True), span("m", 1, None, (0, 2), {semconv.COLD: True})]
    WaterfallSpanExporter(out, 40).export(spans)

    assert out.getvalue() == (
        "\x1b[1mtrace 4bf92f35… · 2.0 ms\x1b[0m\n"
        "m            \x1b[36m████████████\x1b[0m  2.0 ms  \x1b[2mcold\x1b[0m\n"
        "\x1b[2m└─ \x1b[0mtokenize  \x1b[31m██████      \x1b[0m  1.0 ms  \x1b[31merror\x1b[0m\n"
        "\n"
    )


def test_terminal_with_no_color_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    WaterfallSpanExporter(out, 100).export(generation())

    assert out.getvalue() == GENERATION


@pytest.mark.parametrize(
    ("out", "columns", "bar"),
    [
        pytest.param(Terminal(), "60", 44, id="terminal"),
        pytest.param(Terminal(), "1", 24, id="terminal without width"),
        pytest.param(io.StringIO(), "60", 44, id="pipe"),
    ],
)
def test_width_not_given_is_that_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, out: io.StringIO, columns: str, bar: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    WaterfallSpanExporter(out).export([span("root", 1, None, (0, 1))])

    assert out.getvalue() == f"trace 4bf92f35… · 1.0 ms\nroot  {'█' * bar}  1.0 ms\n\n"


def test_width_of_a_pipe_on_a_wide_terminal_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    out = io.StringIO()
    WaterfallSpanExporter(out).export(generation())

    assert max(map(len, out.getvalue().splitlines())) == 120


def test_exporter_without_stream_writes_to_the_stdout_of_the_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = WaterfallSpanExporter(width=100)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)

    assert exporter.export(generation()) is SUCCESS
    assert out.getvalue() == GENERATION


def closed_stream() -> IO[str]:
    out = io.StringIO()
    out.close()
    return out


@pytest.mark.parametrize("out", [pytest.param(closed_stream(), id="closed"), pytest.param(Broken(), id="broken")])
def test_export_to_a_stream_that_fails_is_a_failure(out: IO[str]) -> None:
    exporter = WaterfallSpanExporter(out, 80)

    assert exporter.export(unfinished()) is SUCCESS
    assert exporter.force_flush() is False
    assert exporter.export(generation()) is FAILURE
    exporter.shutdown()


def test_export_without_any_stdout_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    assert WaterfallSpanExporter().export(generation()) is FAILURE


def test_fault_in_a_drawing_is_noted_and_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreadable:
        def __str__(self) -> str:
            raise RuntimeError("no")

    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    before = faults.counts().get("waterfall.draw", 0)
    root = span("root", 1, None, (0, 1), {semconv.REQUEST_MODEL: Unreadable()})

    assert WaterfallSpanExporter(io.StringIO()).export([root]) is FAILURE
    assert faults.counts()["waterfall.draw"] == before + 1


# In a program


def test_exporter_shared_by_threads_writes_whole_drawings() -> None:
    out = io.StringIO()
    exporter = WaterfallSpanExporter(out, 80)
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait()
        for trace_id in range(thread * 100 + 1, thread * 100 + 101):
            exporter.export([span("tokenize", 2, 1, (0, 1), trace_id=trace_id << 96)])
            exporter.export([span("root", 1, None, (0, 2), trace_id=trace_id << 96)])

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(out.getvalue().split("\n\n")) == [
        "",
        *(
            f"trace {trace_id:08x}… · 2.0 ms\n"
            "root         ████████████████████████████████████████████████  2.0 ms\n"
            "└─ tokenize  ████████████████████████                          1.0 ms"
            for trace_id in range(1, 801)
        ),
    ]


def test_exporter_behind_a_batch_processor_draws_the_sdks_spans() -> None:
    out = io.StringIO()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(WaterfallSpanExporter(out, 80)))
    tracer = provider.get_tracer("test")
    root = tracer.start_span("root", start_time=BEGINNING_NS)
    child = tracer.start_span("child", set_span_in_context(root), start_time=BEGINNING_NS + 1_000_000)
    child.end(BEGINNING_NS + 2_000_000)
    root.end(BEGINNING_NS + 2_000_000)
    provider.shutdown()

    trace_id = f"{root.get_span_context().trace_id:032x}"
    assert (
        out.getvalue()
        == f"""\
trace {trace_id[:8]}… · 2.0 ms
root      ████████████████████████████████████████████████  2.0 ms
└─ child                          ████████████████████████  1.0 ms

"""
    )


class Gated(io.StringIO):
    """A stream that is slow: it takes what is written when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.gate = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.gate.wait()
        return super().write(text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_exporter_forked_while_a_thread_draws_is_free_and_empty_in_the_child() -> None:
    out = Gated()
    exporter = WaterfallSpanExporter(out, 80)
    exporter.export(unfinished())
    drawing = threading.Thread(target=exporter.export, args=([span("m", 1, None, (0, 1), trace_id=1)],))
    drawing.start()
    out.entered.wait()
    child = os.fork()
    if child == 0:
        # A child that hangs on the lock is ended by the alarm.
        signal.alarm(10)
        out.gate.set()
        flushed = exporter.force_flush() and out.getvalue() == ""
        os._exit(0 if flushed else 1)
    _, status = os.waitpid(child, 0)
    out.gate.set()
    drawing.join()

    assert status == 0
    assert exporter.force_flush() is True
    assert out.getvalue().endswith(UNFINISHED)
