"""Tail sampling in two tiers: what must be seen is kept, whole, and metrics count everything all the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from support.application import Application
from support.backends import Collector, Jaeger, Prometheus, running
from support.told import CLASSIFICATION, FAILURE, GENERATION, all_traces, span, tags, tree

SLOW = ("rerank", "forward")


def test_errors_slow_cold_and_loads_are_kept_and_the_rest_is_counted(
    application: Callable[..., Application],
    tmp_path: Path,
    destinations: dict[str, str],
    jaeger: Jaeger,
    prometheus: Prometheus,
) -> None:
    with ExitStack() as stack:
        quick = {"DECISION_WAIT": "10s", "DECISION_WAIT_AFTER_ROOT": "1s", "SLOW_MS": "3000", "SHARE_PERCENT": "0"}
        samplers = [
            stack.enter_context(
                running(Collector(tmp_path / f"sampler-{number}", "collector-sampler.yaml", **destinations, **quick))
            )
            for number in (1, 2)
        ]
        addresses = json.dumps([sampler.otlp_grpc.removeprefix("http://") for sampler in samplers])
        balancer = stack.enter_context(
            running(Collector(tmp_path / "balancer", "collector-balancer.yaml", **destinations, SAMPLERS=addresses))
        )
        program = application("sampled", balancer.otlp_grpc)
        program.do("classify", 20)
        program.do("generate", 20)
        program.do("fail", answer="ValueError")
        program.do("slow", 2)
        program.end()
        kept = {"load tiny-bert": 1, "load tiny-llama": 1, CLASSIFICATION: 1, GENERATION: 1, FAILURE: 1, SLOW: 2}
        traces = all_traces(jaeger, program.service, sum(kept.values()))
        count = 'sum(gen_ai_client_operation_duration_seconds_count{job="sampled"})'
        prometheus.until(lambda: prometheus.value(count) == 43, f"{count} == 43")
        # decided, too, is what was not kept: a sampler ends only when nothing waits any more
        for sampler in samplers:
            sampler.stop()

    assert Counter(map(tree, jaeger.traces(program.service))) == kept
    cold = [span(trace, tree(trace)[0]) for trace in traces if tree(trace) in (CLASSIFICATION, GENERATION)]
    assert [tags(root)["inferspan.cold"] for root in cold] == [True, True]
