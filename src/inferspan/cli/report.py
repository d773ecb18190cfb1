"""``inferspan report``: results of ``inferspan bench`` as one HTML page (docs/bench.md)."""

from __future__ import annotations

import argparse
from pathlib import Path

from inferspan.cli import CommandError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="what `inferspan bench --save` wrote; the first is the baseline",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=15.0, metavar="PERCENT", help="what counts as a regression (default: 15)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    require("report", "bench", "pydantic", "numpy", "plotly", "jinja2")
    from inferspan.bench.comparison import IncomparableError
    from inferspan.bench.report import names_of, render
    from inferspan.bench.result_file import FormatError, load

    try:
        results = [load(path) for path in options.results]
        page = render([*zip(names_of(options.results), results, strict=True)], threshold=options.threshold / 100)
        options.output.write_text(page, "utf-8")
    except (FormatError, IncomparableError) as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{options.output}: {error.strerror or error}") from None
    print(f"{options.output}: open it in a browser")
    return 0
