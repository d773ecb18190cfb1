"""Writes collector-config/grafana/dashboards/inferspan.json from the rows and panels below.

    python scripts/dashboard.py           writes it anew
    python scripts/dashboard.py --check   exits with 1 where it differs

Queries have the names that Prometheus gives our metrics (``otlp`` in collector-config/prometheus/prometheus.yaml). What
is selected at the top of the dashboard stands in them as MODEL, JOB and HOST, the window of rates as WINDOW, and labels
that often come together as BY_….
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

TARGET = Path(__file__).resolve().parent.parent / "collector-config" / "grafana" / "dashboards" / "inferspan.json"

PROMETHEUS = {"type": "prometheus", "uid": "${prometheus}"}
TEMPO = {"type": "tempo", "uid": "${tempo}"}
COLUMNS = 24
SHORT = {
    "MODEL": 'job=~"$job", gen_ai_request_model=~"$model"',
    "JOB": 'job=~"$job"',
    "HOST": 'host_name=~"$host"',
    "WINDOW": "$__rate_interval",
    "BY_OPERATION": "job, gen_ai_operation_name, gen_ai_request_model",
    "BY_PHASE": "job, gen_ai_request_model, inferspan_phase",
    "BY_NAME": "job, gen_ai_request_model",
    "BY_DEVICE": "host_name, hw_id",
}
OF_OPERATION = "{{gen_ai_operation_name}} {{gen_ai_request_model}}"
OF_PHASE = "{{inferspan_phase}} {{gen_ai_request_model}}"
OF_MODEL = "{{gen_ai_request_model}}"
OF_DEVICE = "{{host_name}} {{hw_id}}"


@dataclass(frozen=True)
class Query:
    """One query of a panel, and how its series are called; ``exemplars`` only with buckets."""

    text: str
    legend: str = ""
    exemplars: bool = False

    @property
    def expr(self) -> str:
        text = self.text
        for short, long in SHORT.items():
            text = text.replace(short, long)
        return text


@dataclass(frozen=True)
class Panel:
    """One panel. ``warn`` draws a line there; ``links`` leads from a series to the traces of its model."""

    title: str
    unit: str
    queries: list[Query]
    about: str = ""
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    warn: float | None = None
    links: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under one heading; all rows but the first ones are closed until somebody opens them."""

    title: str
    panels: list[Panel]
    opened: bool = False


def either(text: str) -> str:
    """A query on DURATION, by its released name and by that of OTEL_SEMCONV_STABILITY_OPT_IN: a process has one."""
    names = ("gen_ai_client_operation_duration_seconds", "gen_ai_client_inference_duration_seconds")
    return " or ".join(text.replace("DURATION", name) for name in names)


def quantiles(buckets: str, legend: str) -> list[Query]:
    """P50, P95 and P99 with exemplars; ``buckets`` gives rates of buckets, summed by ``le`` and more."""
    return [
        Query(f"histogram_quantile({q}, {buckets})", f"p{q * 100:.0f} {legend}", exemplars=True)
        for q in (0.5, 0.95, 0.99)
    ]


def of_histogram(name: str, by: str, legend: str) -> list[Query]:
    """The quantiles of a histogram."""
    return quantiles(f"sum by (le, {by}) (rate({name}_bucket{{MODEL}}[WINDOW]))", legend)


def mean(name: str, by: str) -> str:
    """Mean of the values that a histogram took in. Exemplars are of buckets, so there are none here."""
    return (
        f"sum by ({by}) (rate({name}_sum{{MODEL}}[WINDOW])) / (sum by ({by}) (rate({name}_count{{MODEL}}[WINDOW])) > 0)"
    )


def since_start(name: str) -> str:
    """The same of what happens once or seldom: between two points there would be nothing."""
    return f"sum by (BY_NAME) ({name}_sum{{MODEL}}) / sum by (BY_NAME) ({name}_count{{MODEL}})"


def tokens(kind: str) -> str:
    """Tokens a second, ``input`` or ``output``, by their released name and by the latest one."""
    return (
        f'sum by (BY_NAME) (rate(gen_ai_client_token_usage_sum{{MODEL, gen_ai_token_type="{kind}"}}[WINDOW]))'
        f" or sum by (BY_NAME) (rate(gen_ai_client_inference_operation_{kind}_tokens_sum{{MODEL}}[WINDOW]))"
    )


def device(title: str, unit: str, metric: str, about: str = "", warn: float | None = None) -> Panel:
    """A gauge of each device, whichever process reports it."""
    return Panel(title, unit, [Query(f"max by (BY_DEVICE) ({metric})", OF_DEVICE)], about, warn=warn)


def stat(title: str, unit: str, text: str, warn: float | None = None) -> Panel:
    """One number."""
    return Panel(title, unit, [Query(text)], kind="stat", width=4, warn=warn)


INFERENCES = either("sum by (BY_OPERATION) (rate(DURATION_count{MODEL}[WINDOW]))")
LATENCY_BUCKETS = either('sum by (le, BY_OPERATION) (rate(DURATION_bucket{MODEL, error_type=""}[WINDOW]))')
ALL_LATENCY_BUCKETS = either('sum by (le) (rate(DURATION_bucket{MODEL, error_type=""}[WINDOW]))')
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"

ROWS = [
    Row(
        "Overview",
        [
            stat("Inferences", "reqps", f"sum({INFERENCES})"),
            stat("Running now", "none", "sum(inferspan_inference_active{JOB})"),
            stat("Latency of 99 of 100", "s", f"histogram_quantile(0.99, {ALL_LATENCY_BUCKETS})"),
            stat(
                "First token of 99 of 100",
                "s",
                f"histogram_quantile(0.99, sum by (le) (rate({FIRST_TOKEN}_bucket{{MODEL}}[WINDOW])))",
            ),
            stat("Tokens generated", "tokens/s", f"sum({tokens('output')})"),
            stat(
                "Errors",
                "percentunit",
                "(sum(rate(inferspan_inference_errors_total{MODEL}[WINDOW])) or vector(0))"
                f" / (sum({INFERENCES}) > 0)",
                warn=0.05,
            ),
        ],
        opened=True,
    ),
    Row(
        "Latency",
        [
            Panel(
                "Latency",
                "s",
                quantiles(LATENCY_BUCKETS, OF_OPERATION),
                "Inferences that succeed. Each dot is one of them: it leads to its trace.",
                links=True,
            ),
            Panel(
                "Time to first token",
                "s",
                of_histogram(FIRST_TOKEN, "BY_NAME", OF_MODEL),
                "Generations only.",
                links=True,
            ),
            Panel(
                "Time per output token",
                "s",
                of_histogram("gen_ai_server_time_per_output_token_seconds", "BY_NAME", OF_MODEL),
                "After the first one; a mean of each generation.",
                links=True,
            ),
            Panel(
                "Time between tokens",
                "s",
                of_histogram("inferspan_inter_token_duration_seconds", "BY_NAME", OF_MODEL),
                "Of single steps: what stutters is in the P99 here, and in no mean.",
                links=True,
            ),
            Panel(
                "Latency of 99 of 100, and its objective",
                "s",
                [
                    Query("inferspan:latency_p99:seconds{MODEL}", OF_OPERATION),
                    Query(
                        'inferspan:objective:seconds{inferspan_objective="latency_p99"}',
                        "objective {{gen_ai_request_model}}",
                    ),
                ],
                "As the alert sees it. Objectives are in prometheus/rules/objectives.yaml.",
                links=True,
            ),
            Panel(
                "First token of 99 of 100, and its objective",
                "s",
                [
                    Query("inferspan:time_to_first_token_p99:seconds{MODEL}", OF_MODEL),
                    Query(
                        'inferspan:objective:seconds{inferspan_objective="time_to_first_token_p99"}',
                        "objective {{gen_ai_request_model}}",
                    ),
                ],
                "As the alert sees it.",
                links=True,
            ),
        ],
        opened=True,
    ),
    Row(
        "Throughput",
        [
            Panel("Inferences", "reqps", [Query(INFERENCES, OF_OPERATION)], stacked=True, links=True),
            Panel(
                "Tokens",
                "tokens/s",
                [Query(tokens("input"), f"read {OF_MODEL}"), Query(tokens("output"), f"generated {OF_MODEL}")],
            ),
            Panel(
                "Running at once",
                "none",
                [Query("sum by (job) (inferspan_inference_active{JOB})", "{{job}}")],
                "At the moment of each export.",
            ),
            Panel("Rows of a batch", "none", of_histogram("inferspan_batch_rows", "BY_NAME", OF_MODEL)),
            Panel(
                "Padding of a batch",
                "percentunit",
                [Query(mean("inferspan_batch_padding", "BY_NAME"), OF_MODEL)],
                "Batches of more than one row. What is padding is computed for nothing.",
            ),
            Panel(
                "Calls waiting in the queue of continuous batching",
                "s",
                [
                    Query(
                        "histogram_quantile(0.99, sum by (le, BY_NAME) "
                        '(rate(inferspan_phase_duration_seconds_bucket{MODEL, inferspan_phase="queue"}[WINDOW])))',
                        f"p99 {OF_MODEL}",
                        exemplars=True,
                    )
                ],
                "Empty without continuous batching.",
                links=True,
            ),
        ],
        opened=True,
    ),
    Row(
        "Where the time goes",
        [
            Panel(
                "Phases, as a share of their inferences",
                "percentunit",
                [
                    Query(
                        "sum by (BY_OPERATION, inferspan_phase) "
                        "(rate(inferspan_phase_duration_seconds_sum{MODEL}[WINDOW]))"
                        " / on (BY_OPERATION) group_left () "
                        f"(({either('sum by (BY_OPERATION) (rate(DURATION_sum{MODEL}[WINDOW]))')}) > 0)",
                        "{{inferspan_phase}} " + OF_OPERATION,
                    )
                ],
                "Prefill and decode are parts of forward.",
                links=True,
            ),
            Panel(
                "Time of a phase",
                "s",
                [Query(mean("inferspan_phase_duration_seconds", "BY_PHASE"), OF_PHASE)],
                "Mean of one inference. Phases of tokenizers and models that are called directly are in it.",
                links=True,
            ),
            Panel(
                "Tokenization, as a share of inferences",
                "percentunit",
                [Query("inferspan:tokenization:ratio_rate5m{MODEL}", OF_OPERATION)],
                "As the alert sees it.",
                warn=0.3,
                links=True,
            ),
            Panel(
                "Slowdown: the same work, against the average of a day",
                "none",
                [Query('inferspan:compute_slowdown:ratio{MODEL, inferspan_against="average"}', OF_PHASE)],
                "1 is as before. The smallest rise of time per call, token, row, FLOP, step, byte: other prompts, "
                "other batches or more traffic do not raise all of them.",
                warn=1.15,
                links=True,
            ),
            Panel(
                "Slowdown: the same work, against a fixed baseline",
                "none",
                [Query('inferspan:compute_slowdown:ratio{MODEL, inferspan_against="baseline"}', OF_PHASE)],
                "Where there is a baseline (docs/alerts.md).",
                warn=1.15,
                links=True,
            ),
            Panel(
                "Compute time per unit of work",
                "s",
                [Query("inferspan:compute_time_per_work:seconds{MODEL}", "per {{inferspan_per}} " + OF_PHASE)],
                "What the slowdown is made of. Choose a logarithmic axis to see them all.",
            ),
        ],
    ),
    Row(
        "Cold starts, errors",
        [
            Panel(
                "Cold starts",
                "short",
                [Query("sum by (BY_NAME) (inferspan_inference_cold_starts_total{MODEL})", OF_MODEL)],
                "First inferences of a model instance, since the processes started.",
                links=True,
            ),
            Panel(
                "Loading",
                "s",
                [Query(since_start("inferspan_load_duration_seconds"), OF_MODEL)],
                "Mean of from_pretrained, since the processes started.",
                links=True,
            ),
            Panel(
                "Compiling",
                "s",
                [Query(since_start("inferspan_compile_duration_seconds"), OF_MODEL)],
                "Mean of the inferences in which torch.compile worked, since the processes started. Empty without it.",
                links=True,
            ),
            Panel(
                "Errors, as a share of inferences",
                "percentunit",
                [Query("inferspan:errors:ratio_rate5m{MODEL}", OF_OPERATION)],
                "As the alert sees it.",
                warn=0.05,
                links=True,
            ),
            Panel(
                "Errors by class",
                "cps",
                [
                    Query(
                        "sum by (error_type, gen_ai_request_model) "
                        "(rate(inferspan_inference_errors_total{MODEL}[WINDOW]))",
                        "{{error_type}} {{gen_ai_request_model}}",
                    )
                ],
                links=True,
            ),
            Panel(
                "Out of memory, recompiled, left out of telemetry",
                "short",
                [
                    Query(
                        "sum by (gen_ai_request_model, inferspan_device) (inferspan_out_of_memory_total{MODEL})",
                        "out of memory on {{inferspan_device}} {{gen_ai_request_model}}",
                    ),
                    Query("sum by (BY_NAME) (inferspan_compile_recompiles_total{MODEL})", f"recompiled {OF_MODEL}"),
                    Query(
                        "sum by (job, inferspan_drop_reason) (inferspan_overhead_dropped_total{JOB})",
                        "left out ({{inferspan_drop_reason}}) {{job}}",
                    ),
                ],
                "Since the processes started.",
            ),
        ],
    ),
    Row(
        "Memory of inferences",
        [
            Panel(
                "Peak of an inference",
                "bytes",
                [
                    Query(
                        "histogram_quantile(0.99, sum by (le, BY_NAME, inferspan_device) "
                        "(rate(inferspan_memory_peak_bytes_bucket{MODEL}[WINDOW])))",
                        "p99 {{inferspan_device}} " + OF_MODEL,
                        exemplars=True,
                    )
                ],
                "Of torch's allocator.",
                links=True,
            ),
            Panel(
                "Left after an inference",
                "bytes",
                [
                    Query(
                        "max by (BY_NAME, inferspan_device) (inferspan_memory_after_bytes{MODEL})",
                        "{{inferspan_device}} " + OF_MODEL,
                    )
                ],
                "Allocated when the last one ended: weights, caches, and what leaks.",
                links=True,
            ),
            Panel(
                "Growth for each inference",
                "bytes",
                [
                    Query(
                        "max by (BY_NAME, inferspan_device) (inferspan_memory_growth_bytes{MODEL})",
                        "{{inferspan_device}} " + OF_MODEL,
                    )
                ],
                "0 without a trend; anything else for a while is a leak.",
                links=True,
            ),
            Panel("KV cache", "bytes", of_histogram("inferspan_kv_cache_size_bytes", "BY_NAME", OF_MODEL)),
            Panel(
                "Memory of the process",
                "bytes",
                [Query("sum by (job, instance) (process_memory_usage_bytes{JOB})", "{{job}} {{instance}}")],
                "Resident.",
            ),
            device(
                "Memory of the GPU in use",
                "percentunit",
                "hw_gpu_memory_utilization_ratio{HOST}",
                "By all processes.",
                warn=0.85,
            ),
        ],
    ),
    Row(
        "Compute",
        [
            Panel(
                "GPU time of a phase",
                "s",
                [Query(mean("inferspan_gpu_time_seconds", "BY_PHASE"), OF_PHASE)],
                "Mean of one inference, between events on the device. Empty on a CPU.",
                links=True,
            ),
            Panel(
                "FLOPs",
                "flops",
                [Query("sum by (BY_PHASE) (rate(inferspan_flops_total{MODEL}[WINDOW]))", OF_PHASE)],
                "Of matrix products and attention, padding included.",
            ),
            Panel(
                "Utilization (MFU)",
                "percentunit",
                [Query(mean("inferspan_flops_utilization", "BY_PHASE"), OF_PHASE)],
                "FLOPs / (GPU time * dense peak of the device). Only on GPUs whose peak is known.",
                links=True,
            ),
            Panel(
                "Energy per generated token",
                "joule",
                of_histogram("inferspan_energy_per_output_token_joules", "BY_NAME", OF_MODEL),
                "Of the whole board; of inferences that take a second at least.",
                links=True,
            ),
            Panel(
                "Power that inferences account for",
                "watt",
                [Query("sum by (BY_NAME) (rate(inferspan_energy_consumption_joules_total{MODEL}[WINDOW]))", OF_MODEL)],
                "Compare with the power of the board below: the rest is idle draw and others.",
            ),
        ],
    ),
    Row(
        "GPUs",
        [
            device(
                "Busy",
                "percentunit",
                'hw_gpu_utilization_ratio{HOST, hw_gpu_task="general"}',
                "Share of time in which at least one kernel ran: busy, not full.",
            ),
            Panel(
                "Memory",
                "bytes",
                [
                    Query("max by (BY_DEVICE) (hw_gpu_memory_usage_bytes{HOST})", f"used {OF_DEVICE}"),
                    Query("max by (BY_DEVICE) (inferspan_device_memory_reserved_bytes{HOST})", f"driver's {OF_DEVICE}"),
                    Query("max by (BY_DEVICE) (hw_gpu_memory_limit_bytes{HOST})", f"there is {OF_DEVICE}"),
                ],
            ),
            device(
                "Memory at work",
                "percentunit",
                "inferspan_device_memory_busy_ratio{HOST}",
                "Share of time in which it was read or written.",
            ),
            Panel(
                "Power",
                "watt",
                [
                    Query('max by (BY_DEVICE) (hw_power_watts{HOST, hw_type="gpu"})', OF_DEVICE),
                    Query("max by (BY_DEVICE) (inferspan_device_power_limit_watts{HOST})", f"limit {OF_DEVICE}"),
                    Query(
                        'max by (BY_DEVICE) (rate(hw_energy_joules_total{HOST, hw_type="gpu"}[WINDOW]))',
                        f"by the energy counter {OF_DEVICE}",
                    ),
                ],
            ),
            Panel(
                "Temperature",
                "celsius",
                [
                    Query(
                        'max by (BY_DEVICE, hw_sensor_location) (hw_temperature_celsius{HOST, hw_sensor_location!=""})',
                        "{{hw_sensor_location}} " + OF_DEVICE,
                    )
                ],
            ),
            Panel(
                "Clocks",
                "hertz",
                [
                    Query(
                        "max by (BY_DEVICE, inferspan_device_clock) (inferspan_device_clock_frequency_hertz{HOST})",
                        "{{inferspan_device_clock}} " + OF_DEVICE,
                    )
                ],
            ),
            Panel(
                "Clock throttling",
                "percentunit",
                [
                    Query(
                        "max by (BY_DEVICE, inferspan_device_clock_reason) "
                        "(rate(inferspan_device_clock_held_time_seconds_total{HOST}[WINDOW]))",
                        "{{inferspan_device_clock_reason}} " + OF_DEVICE,
                    )
                ],
                "Share of time. power_cap is the rule at full load; heat is not.",
                warn=0.1,
            ),
            Panel(
                "Reasons at the moment",
                "none",
                [
                    Query(
                        "max by (BY_DEVICE, inferspan_device_clock_reason) (inferspan_device_clock_held_ratio{HOST})",
                        "{{inferspan_device_clock_reason}} " + OF_DEVICE,
                    )
                ],
                "1 where the clocks are throttled for this reason.",
            ),
            Panel(
                "PCIe",
                "Bps",
                [
                    Query(
                        "max by (BY_DEVICE, network_io_direction) (rate(hw_gpu_io_bytes_total{HOST}[WINDOW]))",
                        "{{network_io_direction}} " + OF_DEVICE,
                    )
                ],
                "transmit is from the device. A link that is full starves the GPU.",
            ),
            Panel(
                "NVLink",
                "Bps",
                [
                    Query(
                        "max by (BY_DEVICE, network_io_direction) "
                        "(rate(inferspan_device_nvlink_io_bytes_total{HOST}[WINDOW]))",
                        "{{network_io_direction}} " + OF_DEVICE,
                    )
                ],
            ),
            Panel(
                "PCIe link",
                "none",
                [
                    Query(
                        "max by (BY_DEVICE) (inferspan_device_pcie_generation_ratio{HOST})", f"generation {OF_DEVICE}"
                    ),
                    Query("max by (BY_DEVICE) (inferspan_device_pcie_width{HOST})", f"lanes {OF_DEVICE}"),
                    Query(
                        "max by (BY_DEVICE) (increase(inferspan_device_pcie_replays_total{HOST}[WINDOW]))",
                        f"replays {OF_DEVICE}",
                    ),
                ],
                "An idle link steps down; lanes that are missing under load are a fault.",
            ),
            Panel(
                "Errors of the hardware",
                "short",
                [
                    Query(
                        'max by (BY_DEVICE, error_type) (hw_errors_total{HOST, hw_type="gpu"})',
                        "ECC {{error_type}} " + OF_DEVICE,
                    ),
                    Query(
                        "max by (BY_DEVICE, inferspan_device_row_state) (inferspan_device_rows{HOST})",
                        "rows {{inferspan_device_row_state}} " + OF_DEVICE,
                    ),
                    Query(
                        "max by (BY_DEVICE, inferspan_device_xid_code) (inferspan_device_xids_total{HOST})",
                        "XID {{inferspan_device_xid_code}} " + OF_DEVICE,
                    ),
                ],
                "ECC errors of the board's life. XIDs only with `xid` in INFERSPAN_DEVICES_DETAIL.",
            ),
            Panel(
                "State",
                "none",
                [Query('max by (BY_DEVICE, hw_state) (hw_status{HOST, hw_type="gpu"})', "{{hw_state}} " + OF_DEVICE)],
                "1 for the state that the board is in.",
            ),
            Panel(
                "SMs",
                "percentunit",
                [
                    Query("max by (BY_DEVICE) (inferspan_device_sm_utilization_ratio{HOST})", f"had work {OF_DEVICE}"),
                    Query(
                        "max by (BY_DEVICE) (inferspan_device_sm_occupancy_ratio{HOST})", f"warps active {OF_DEVICE}"
                    ),
                    Query(
                        "max by (BY_DEVICE) (inferspan_device_memory_bandwidth_utilization_ratio{HOST})",
                        f"memory bandwidth {OF_DEVICE}",
                    ),
                ],
                "Only with `gpm` in INFERSPAN_DEVICES_DETAIL, from Hopper on.",
            ),
            Panel(
                "Pipes",
                "percentunit",
                [
                    Query(
                        "max by (BY_DEVICE, inferspan_device_pipe) (inferspan_device_pipe_utilization_ratio{HOST})",
                        "{{inferspan_device_pipe}} " + OF_DEVICE,
                    )
                ],
                "Whether tensor cores work, and with which numbers. Only with `gpm`, as above.",
            ),
            Panel(
                "Memory of processes",
                "bytes",
                [
                    Query(
                        "max by (BY_DEVICE, process_pid) (inferspan_device_process_memory_bytes{HOST})",
                        "process {{process_pid}} " + OF_DEVICE,
                    )
                ],
                "Only with `slow` in INFERSPAN_DEVICES_DETAIL.",
            ),
        ],
    ),
    Row(
        "Host and process",
        [
            Panel(
                "CPU of the host",
                "percentunit",
                [
                    Query(
                        'max by (host_name, cpu_mode) (system_cpu_utilization_ratio{HOST, cpu_mode!~"|idle"})',
                        "{{cpu_mode}} {{host_name}}",
                    )
                ],
                "A GPU that waits for its host looks idle.",
                stacked=True,
            ),
            Panel(
                "CPU of the process",
                "percentunit",
                [
                    Query(
                        "sum by (job, instance, cpu_mode) (process_cpu_utilization_ratio{JOB})",
                        "{{cpu_mode}} {{job}} {{instance}}",
                    )
                ],
                "Of the CPUs that it may use.",
            ),
            Panel(
                "Memory of the host",
                "bytes",
                [
                    Query(
                        "max by (host_name, system_memory_state) "
                        '(system_memory_usage_bytes{HOST, system_memory_state!=""})',
                        "{{system_memory_state}} {{host_name}}",
                    ),
                    Query("max by (host_name) (system_memory_limit_bytes{HOST})", "there is {{host_name}}"),
                ],
            ),
            Panel(
                "What watching the GPUs costs",
                "percentunit",
                [
                    Query(
                        "sum by (job, instance) (rate(inferspan_overhead_devices_time_seconds_total{JOB}[WINDOW]))",
                        "{{job}} {{instance}}",
                    )
                ],
                "Share of time in which a thread of ours asked the driver, waiting for it included.",
            ),
        ],
    ),
]

SELECTED = 'resource.service.name =~ "$job" && span.gen_ai.request.model =~ "$model"'
TRACES = [
    ("Slow inferences", f"{{ {SELECTED} && duration > 1s }}"),
    ("Inferences that failed", f"{{ {SELECTED} && status = error }}"),
    ("First inferences of a model", f"{{ {SELECTED} && span.inferspan.cold = true }}"),
]


def traces_of_model() -> str:
    """The address of Tempo's search in Explore, for the series that was clicked."""
    query = (
        '{ resource.service.name = "${__field.labels.job}"'
        ' && span.gen_ai.request.model = "${__field.labels.gen_ai_request_model}" }'
    )
    target = {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": query, "limit": 20}
    panes = {"a": {"datasource": "${tempo}", "queries": [target], "range": {"from": "${__from}", "to": "${__to}"}}}
    # braces and dollars stay, for Grafana to fill in
    return "/explore?schemaVersion=1&orgId=1&panes=" + quote(json.dumps(panes, separators=(",", ":")), safe="${}:_.")


def drawn(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """A panel as Grafana's JSON has it."""
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": 300000}
        if panel.stacked:
            custom["stacking"] = {"mode": "normal", "group": "A"}
        if panel.warn is not None:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["custom"] = custom
    if panel.warn is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.warn}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.links:
        defaults["links"] = [{"title": "Traces of this model", "url": traces_of_model(), "targetBlank": True}]
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": PROMETHEUS,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "range": True,
            "exemplar": query.exemplars,
        }
        for index, query in enumerate(panel.queries)
    ]
    options: dict[str, Any] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": PROMETHEUS,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def found(title: str, traceql: str, number: int, place: dict[str, int]) -> dict[str, Any]:
    """A table of traces."""
    return {
        "id": number,
        "type": "table",
        "title": title,
        "description": "Click a trace to open it.",
        "datasource": TEMPO,
        "gridPos": place,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"showHeader": True},
        "targets": [
            {
                "refId": "A",
                "datasource": TEMPO,
                "queryType": "traceql",
                "query": traceql,
                "tableType": "traces",
                "limit": 20,
            }
        ],
    }


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice at the top of the dashboard."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": "A"},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def source(name: str, label: str, kind: str) -> dict[str, Any]:
    """A choice of the data source."""
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": kind,
        "current": {"text": label, "value": kind},
    }


def dashboard() -> dict[str, Any]:
    """All of it."""
    panels: list[dict[str, Any]] = []
    number, y = 1, 0
    rows = [(row.title, row.opened, row.panels) for row in ROWS]
    for title, opened, members in rows:
        heading = {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": not opened,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        number, y, x, height = number + 1, y + 1, 0, 0
        inside = []
        for panel in members:
            height = 4 if panel.kind == "stat" else 8
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            inside.append(drawn(panel, number, {"x": x, "y": y, "w": panel.width, "h": height}))
            number, x = number + 1, x + panel.width
        y += height
        panels.append(heading)
        if opened:
            panels += inside
        else:
            heading["panels"] = inside
    heading = {
        "id": number,
        "type": "row",
        "title": "Traces",
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": [],
    }
    panels.append(heading)
    for index, (title, traceql) in enumerate(TRACES):
        place = {"x": 8 * index, "y": y + 1, "w": 8, "h": 10}
        panels.append(found(title, traceql, number + 1 + index, place))
    phases = 'inferspan_phase_duration_seconds_count{job=~"$job"}'
    return {
        "uid": "inferspan",
        "title": "Inferspan",
        "description": "Models that run inside of your own processes: latency, tokens, phases, memory, GPUs.",
        "tags": ["inferspan", "opentelemetry", "inference"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                source("prometheus", "Prometheus", "prometheus"),
                source("tempo", "Tempo", "tempo"),
                variable("job", "service", "label_values(inferspan_inference_active, job)"),
                variable("model", "model", f"label_values({phases}, gen_ai_request_model)"),
                variable("host", "host", "label_values(inferspan_device_info_ratio, host_name)"),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": PROMETHEUS,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'ALERTS{alertname=~"Inferspan.*", alertstate="firing"}',
                }
            ]
        },
        "panels": panels,
    }


def main(arguments: list[str]) -> int:
    text = json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
    if "--check" in arguments:
        if not TARGET.exists() or TARGET.read_text("utf-8") != text:
            print(f"{TARGET} differs from its table: run python scripts/dashboard.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
