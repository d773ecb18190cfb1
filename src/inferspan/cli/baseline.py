"""``inferspan baseline``: a result of ``inferspan bench`` as recording rules, for the alert on slower work."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inferspan.cli import CommandError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("result", type=Path, metavar="FILE", help="what `inferspan bench --save` wrote")
    parser.add_argument("--batch-size", type=int, metavar="N", help="of this batch size only (default: all together)")
    parser.add_argument("--input-tokens", type=int, metavar="N", help="of this length only (default: all together)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")


def run(options: argparse.Namespace) -> int:
    """Write the rules."""
    require("baseline", "bench", "pydantic")
    from inferspan.bench.baseline import as_rules, points
    from inferspan.bench.result_file import FormatError, load

    try:
        result = load(options.result)
    except FormatError as error:
        raise CommandError(str(error)) from None
    found = points(result, options.batch_size, options.input_tokens)
    if not found:
        raise CommandError(
            f"{options.result} has no configuration like that, or none that a model's phases are known of"
        )
    text = as_rules(found, f"{result.targets[0].label}, {result.created}")
    try:
        sys.stdout.write(text) if options.output is None else options.output.write_text(text)
    except OSError as error:
        raise CommandError(f"{options.output}: {error.strerror or error}") from None
    return 0
