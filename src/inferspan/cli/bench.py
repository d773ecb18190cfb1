"""``inferspan bench``: a baseline of a model in this process, by the measuring code of production (docs/bench.md)."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferspan.cli import CommandError, require
from inferspan.cli.numbers import above_zero, not_below_zero, positive, positive_list

if TYPE_CHECKING:
    from inferspan.bench.results import Result, Workload
    from inferspan.bench.runner import Plan
    from inferspan.bench.targets import Specification

_SERVICE = "inferspan-bench"
_OUTPUT_TOKENS = 64
_WARMUP_REQUESTS = 500
_EPILOG = """\
examples:
  inferspan bench Qwen/Qwen3-0.6B --batch-sizes 1,2,4,8 --input-tokens 128,1024 --save baseline.json
  inferspan bench Qwen/Qwen3-0.6B --compare baseline.json       exit code 1 on a regression
  inferspan bench ./model --against quantize=dynamic-int8       the same model quantised, in one run, taking turns
  inferspan bench --pipeline text-classification ./model --data requests.jsonl
  inferspan bench my_module:make_callable
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("target", metavar="TARGET", help="Hub id, folder, or module:function that makes a callable")
    _add_target(parser)
    _add_workload(parser)
    _add_durations(parser)
    _add_result(parser)


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument("--pipeline", metavar="TASK", help="task of the pipeline (default: by the model's architecture)")
    group.add_argument("--generate", action="store_true", help="tokenizer and generate() by hand, without a pipeline")
    group.add_argument("--device", help="where it runs, as torch names it")
    group.add_argument("--dtype", help="of its weights, as torch names it: float32, bfloat16, float16")
    group.add_argument("--quantize", metavar="WAY", help="dynamic-int8: torch's own for the CPU")
    group.add_argument("--compile", metavar="MODE", nargs="?", const="default", help="torch.compile, with this mode")
    group.add_argument("--attention", metavar="NAME", help="attention implementation: sdpa, eager, …")
    group.add_argument("--revision", help="branch, tag or commit of the Hub's repository")
    group.add_argument(
        "--against",
        metavar="TARGET",
        help="a second target, measured in turns with the first: NAME[,KEY=VALUE]…, or only what is to be different "
        "(keys: task, device, dtype, quantize, compile, attention, revision)",
    )


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--batch-sizes", type=positive_list, default=[1], metavar="N,…", help="items of a request (default: 1)"
    )
    group.add_argument(
        "--input-tokens", type=positive_list, default=[], metavar="N,…", help="exact length of generated text"
    )
    group.add_argument("--output-tokens", type=positive, metavar="N", help="exact number to generate (default: 64)")
    group.add_argument("--data", type=Path, metavar="FILE", help="requests of your own, JSON lines")
    group.add_argument("--concurrency", type=positive, default=1, metavar="N", help="closed loop: so many at once")
    group.add_argument("--rate", type=above_zero, metavar="R", help="open loop: requests per second, Poisson")
    group.add_argument("--stream", action="store_true", help="take the tokens as they come, by a streamer")
    group.add_argument("--seed", type=int, default=0, help="of text and arrivals (default: %(default)s)")


def _add_durations(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how long")
    group.add_argument(
        "--requests", type=positive, default=100, metavar="N", help="at each point, at most (default: 100)"
    )
    group.add_argument(
        "--duration", type=above_zero, default=30.0, metavar="S", help="and not much longer (default: 30)"
    )
    group.add_argument(
        "--warmup", type=above_zero, default=30.0, metavar="S", help="until steady, at most (default: 30)"
    )
    group.add_argument(
        "--idle", type=not_below_zero, default=2.0, metavar="S", help="rest before and after (default: 2)"
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument("--save", type=Path, metavar="FILE", help="write the result; gzipped if the name ends in .gz")
    group.add_argument("--compare", type=Path, metavar="FILE", help="with this baseline; exit code 1 on a regression")
    group.add_argument(
        "--threshold", type=above_zero, default=15.0, metavar="PERCENT", help="what counts as one (default: 15)"
    )
    group.add_argument("--gate", action="store_true", help="exit code 1 also where TARGET is worse than --against")
    group.add_argument("--force", action="store_true", help="compare even what was measured under other conditions")
    group.add_argument("--json", action="store_true", help="the result on standard output, in place of tables")
    group.add_argument("--quiet", action="store_true", help="no progress, no tables")
    group.add_argument(
        "--otlp", action="store_true", help="send traces and metrics of the run, and its baseline, to the OTLP endpoint"
    )


def run(options: argparse.Namespace) -> int:
    """Run it; 1 on a regression or where nothing could be measured, 130 after Ctrl-C."""
    needed = ("rich", "pydantic", "numpy")
    models = () if ":" in options.target and "/" not in options.target else ("torch", "transformers")
    require("bench", "bench", *needed, *models)
    from inferspan.bench import runner
    from inferspan.bench.result_file import FormatError, load, save
    from inferspan.bench.targets import TargetError
    from inferspan.bench.workload import WorkloadError

    try:
        baseline = None if options.compare is None else load(options.compare)
        plan = runner.Plan(_specifications(options), _workload(options), _command(), idle_s=options.idle)
        plan.cooldown_s = options.idle
        _read_data(options, plan)
    except (TargetError, WorkloadError, FormatError) as error:
        raise CommandError(str(error)) from None
    if options.save is not None and not options.save.absolute().parent.is_dir():
        raise CommandError(f"--save {options.save}: there is no such folder")
    _quieten()
    result = _measure(options, plan)
    if options.save is not None:
        try:
            save(result, options.save)
        except OSError as error:
            raise CommandError(f"--save {options.save}: {error.strerror or error}") from None
    return _report(options, result, baseline)


# -- what was asked for ------------------------------------------------------------------------------------------------


def _specifications(options: argparse.Namespace) -> list[Specification]:
    from inferspan.bench import targets

    first = targets.Specification(
        name=options.target,
        task=options.pipeline,
        direct=options.generate,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        compile=options.compile,
        attention=options.attention,
        revision=options.revision,
    )
    return [first] if options.against is None else [first, targets.parse(options.against, first)]


def _workload(options: argparse.Namespace) -> Workload:
    from inferspan.bench.results import Workload

    if options.stream and options.batch_sizes != [1]:
        raise CommandError("--stream: transformers' streamers take one sequence at a time, so only --batch-sizes 1")
    if options.data is not None and options.input_tokens:
        raise CommandError("--data and --input-tokens: requests from a file have the length that they have")
    return Workload(
        loop="closed" if options.rate is None else "open",
        concurrency=options.concurrency,
        rate=options.rate,
        stream=options.stream,
        seed=options.seed,
        batch_sizes=options.batch_sizes,
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens or _OUTPUT_TOKENS,
        requests=options.requests,
        duration_s=options.duration,
        warmup_requests_max=_WARMUP_REQUESTS,
        warmup_duration_max_s=options.warmup,
    )


def _read_data(options: argparse.Namespace, plan: Plan) -> None:
    if options.data is not None:
        from inferspan.bench.workload import read_requests

        plan.requests, plan.workload.data_sha256 = read_requests(options.data)
        plan.workload.data, plan.workload.data_requests = options.data.name, len(plan.requests)


def _command() -> list[str]:
    from inferspan.bench.folders import last_part

    name = "inferspan" if sys.argv[1:2] == ["bench"] else os.path.basename(sys.argv[0])
    return [name, *map(last_part, sys.argv[1:])]


# -- while it runs -----------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace, plan: Plan) -> Result:
    """Run the plan under ``instrument()``, with progress unless that is not wanted, and send what is to be sent."""
    from inferspan.bench import baseline, runner
    from inferspan.bench.recorder import Recorder
    from inferspan.cli.recording import resource

    recorder = Recorder(resource(_SERVICE), *(_exporters() if options.otlp else ()))
    recorder.start()
    try:
        with _progress(options, runner.steps(plan)) as progress:
            result = runner.run(plan, recorder, progress)
        if options.otlp:
            baseline.record(recorder.meter, baseline.points(result))
    finally:
        recorder.stop()
    return result


def _exporters() -> tuple[list[Any], list[Any]]:
    """What sends spans, and what sends metrics, to the collector that the environment names."""
    from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_ENDPOINT
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from inferspan.cli.recording import collector

    found = collector()
    if found is None:
        raise CommandError(f"--otlp: where to is said by {OTEL_EXPORTER_OTLP_ENDPOINT}, which is not set")
    return [BatchSpanProcessor(found.span_exporter)], [PeriodicExportingMetricReader(found.metric_exporter)]


def _progress(options: argparse.Namespace, steps: int) -> Any:
    from rich.console import Console

    from inferspan.bench.progress import Bars, Lines, Silent

    console = Console(stderr=True, highlight=False, markup=False)
    if options.quiet:
        return Silent()
    return Bars(console, steps) if console.is_terminal else Lines(console)


def _quieten() -> None:
    """Leave the terminal to the run: no progress bars or warnings of the libraries."""
    from inferspan.faults import InferspanWarning

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read once, when huggingface_hub is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", InferspanWarning)


# -- what is reported --------------------------------------------------------------------------------------------------


def _report(options: argparse.Namespace, result: Result, baseline: Result | None) -> int:
    """Tables or JSON; the exit code."""
    import json

    from rich.console import Console

    from inferspan.bench import comparison, figures, tables

    threshold, refused = options.threshold / 100, ""
    compared = comparison.against(result, threshold=threshold)
    try:
        if baseline is not None:
            compared.append(comparison.compare(baseline, result, threshold=threshold, force=options.force))
    except comparison.IncomparableError as error:
        refused = str(error)
    if options.json:
        found = {**figures.as_json(result), "comparisons": [dataclasses.asdict(each) for each in compared]}
        print(json.dumps(found, indent=2))
    elif not options.quiet:
        console = Console(highlight=False, markup=False)
        tables.show(console, result)
        for each in compared:
            tables.show_comparison(console, each)
    if refused:
        raise CommandError(f"--compare {options.compare}: {refused}. --force compares all the same")
    if result.partial:
        return 130
    if not any(configuration.samples.latency_s for target in result.targets for configuration in target.configurations):
        raise CommandError(_why_nothing(result))
    gating = compared if options.gate else compared[len(result.targets) - 1 :]
    return 1 if any(each.regressions for each in gating) else 0


def _why_nothing(result: Result) -> str:
    """The first reason for which nothing was measured."""
    failures = [target.failure for target in result.targets]
    failures += [configuration.failure for target in result.targets for configuration in target.configurations]
    return next((f"nothing was measured: {failure.message}" for failure in failures if failure), "nothing was measured")
