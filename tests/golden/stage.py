"""Where a scenario runs: instrumented on its own, everything kept in memory, read by two metric readers."""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import inferspan
from golden import internals, placeholders, text
from golden.outcome import short
from support.recorder import Recorder

Scenario = Callable[["Stage"], Any]
DELTA = dict.fromkeys((Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA)
_SETTINGS = ("INFERSPAN_", "OTEL_")
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class Group(dict[str, Scenario]):
    """Scenarios of one subject by their names; ``@group`` adds a function under its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __call__(self, function: Scenario) -> Scenario:
        self[function.__name__] = function
        return function


class Stage(Recorder):
    """A recorder with a cumulative and a delta reader, and with log records. ``patch`` and ``folder`` last as long."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch = patch
        self.folder = folder
        self.bounds = self.exemplars = False
        self.told: list[str] = []
        self.collected: list[tuple[Any, Any]] = []
        self.logs = InMemoryLogRecordExporter()
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.provide()

    def provide(self, *, processors: Any = (), meter: dict[str, Any] | None = None, **tracer_provider: Any) -> None:
        """Other providers than the plain ones: before :meth:`instrument`."""
        Recorder.__init__(self, **tracer_provider)
        for processor in processors:
            self.tracer_provider.add_span_processor(processor)
        self.reader, self.delta = InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)
        self.meter_provider = MeterProvider([self.reader, self.delta], shutdown_on_exit=False, **(meter or {}))

    def instrument(self, **settings: Any) -> None:
        super().instrument(logger_provider=self.logger_provider, **settings)

    def warmed(self, call: Callable[[], Any]) -> None:
        """Instruments, and does once what is cold: its spans and points are not told."""
        self.instrument()
        call()
        self.forget()

    def forget(self) -> None:
        """Nothing so far is told, but for the sums of the cumulative reader."""
        self.clear()
        self.logs.clear()
        for reader in (self.reader, self.delta):
            reader.get_metrics_data()

    def collect(self) -> None:
        """Both readers collect. The provider's own flush would, too, and the delta reader's points be gone."""
        self.tracer_provider.force_flush()
        self.collected.append((self.reader.get_metrics_data(), self.delta.get_metrics_data()))

    def say(self, line: str) -> None:
        """Add a line of the scenario's own to the text."""
        self.told.append(line)

    def written(self) -> list[str]:
        """All that was told, as text."""
        spans = text.Spans(self.exporter.get_finished_spans())
        lines = [*text.section("spans", spans.lines())]
        lines += text.section("logs", text.logs(self.logs.get_finished_logs(), spans))
        for number, data in enumerate(self.collected, 1):
            which = f", collection {number}" if len(self.collected) > 1 else ""
            cumulative, delta = (
                text.metrics(each, spans, bounds=self.bounds, exemplars=self.exemplars) for each in data
            )
            if cumulative == delta:
                lines += text.section(f"metrics, both readers{which}", cumulative)
            else:
                lines += text.section(f"metrics, cumulative{which}", cumulative)
                lines += text.section(f"metrics, delta{which}", delta)
        return lines


def run(name: str, scenario: Scenario) -> str:
    """The scenario's text."""
    with _alone() as (patch, folder), _heard() as heard:
        stage = Stage(patch, folder)
        try:
            result = short(scenario(stage))
            stage.collect()
        except Exception as error:
            raise RuntimeError(f"scenario {name!r}") from error
        finally:
            stage.close()
        lines = [f"result {result}", *stage.told, *text.section("warnings", heard), *stage.written()]
    written = "\n".join([f"== {name}", *text.indented(lines)])
    return _without_places(written, folder)


@contextmanager
def _alone() -> Iterator[tuple[pytest.MonkeyPatch, Path]]:
    """No setting of the shell, no state of the scenario before."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for variable in [*os.environ]:
            if variable.startswith(_SETTINGS) or variable in _OF_A_LAUNCHER:
                patch.delenv(variable)
        patch.setenv("INFERSPAN_DEVICES", "never")
        internals.faults_fail(patch)
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield patch, Path(folder)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What is warned of and logged by the library."""
    heard: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said, *stack = placeholders.sentence(record.getMessage()).split("\n  File ")
            heard.append(f"logged {record.levelname} {said}{' <stack>' if stack else ''}")

    keep, logger, sdk = Keep(), logging.getLogger("inferspan"), logging.getLogger("opentelemetry")
    logger.addHandler(keep)
    level = sdk.level
    sdk.setLevel(logging.CRITICAL)  # it complains of limits that are reached, and more that is done on purpose
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", inferspan.InferspanWarning)
        warnings.showwarning = lambda message, category, *_, **__: heard.append(
            f"{category.__name__} {placeholders.sentence(str(message))}"
        )
        try:
            yield heard
        finally:
            logger.removeHandler(keep)
            sdk.setLevel(level)


def _without_places(written: str, folder: Path) -> str:
    return re.sub(r"0x[0-9a-f]{6,}", "<address>", written.replace(str(folder), "<folder>"))


@contextmanager
def quick_collections() -> Iterator[None]:
    """Collections of garbage do not look at all modules and classes, so scenarios may ask for them."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


__all__ = ["Group", "InMemorySpanExporter", "SimpleSpanProcessor", "Stage", "quick_collections", "run"]
