"""The command line: ``inferspan COMMAND``, also as ``python -m inferspan.cli COMMAND``.

Each command is a module of this folder with two functions, ``add_arguments(parser)`` and ``run(options) -> int``,
and a row in ``_COMMANDS``. It is imported only when it is asked for, and imports the packages of its extra only in
``run``: ``inferspan --help`` costs nothing. What a user can mend ends in one sentence on standard error and exit
code 1 (:class:`CommandError`), Ctrl-C in 130.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from inferspan.version import __version__

__all__ = ["CommandError", "main", "require"]

_COMMANDS = {
    "demo": "traces small models on this machine, and draws what was recorded",
    "bench": "measures a model on this machine: a baseline to compare with",
    "report": "makes one HTML page of results of `inferspan bench`",
    "baseline": "makes a result of `inferspan bench` the baseline of the alerts",
    "agent": "reports the GPUs and the host of this machine over OTLP, until it is stopped",
    "devices": "shows the GPUs of this machine",
}
"""Name of the command, which is also that of its module, and its line in ``inferspan --help``."""


class CommandError(Exception):
    """The command cannot go on; the text says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="inferspan", description="OpenTelemetry for models that run inside your own process."
    )
    parser.add_argument("--version", action="version", version=f"inferspan {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = None
    for name, brief in _COMMANDS.items():
        command = commands.add_parser(name, help=brief, description=f"inferspan {name}: {brief}.")
        if name in arguments[:1]:
            module = importlib.import_module(f"inferspan.cli.{name}")
            module.add_arguments(command)
            run = module.run
    options = parser.parse_args(arguments)
    try:
        code = 2 if run is None else int(run(options))
        sys.stdout.flush()
        return code
    except CommandError as error:
        sys.stdout.flush()
        print(f"inferspan {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninferspan {options.command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) is gone; without this the interpreter's own flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def require(command: str, extra: str, *modules: str) -> None:
    """Have these modules, which ``extra`` brings, or end the command.

    Raises:
        CommandError: at least one of them is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise CommandError(
            f"`inferspan {command}` needs {names}, not installed in this Python: pip install 'inferspan[{extra}]'"
        )
