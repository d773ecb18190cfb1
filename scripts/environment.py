"""The project's virtual environments: made when missing, brought up to date when stale, then used.

    python3 scripts/environment.py EXTRA COMMAND [ARGUMENT...]
    python3 scripts/environment.py --oldest EXTRA COMMAND [ARGUMENT...]

The first form uses `.venv` and constraints/newest.txt, the second `.venv-oldest` and constraints/oldest.txt.
COMMAND runs inside the environment and its exit status is ours. The Makefile is the usual caller; where there
is no make (Windows), these are the same steps by hand.

A stamp in the environment says what it was made from, so a run that finds nothing changed never starts pip.
Only the standard library is used, and nothing outside the two environments is written.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Above all annotations: an older Python still parses this file, and gets a sentence for an answer.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        "[set-up] Inferspan needs Python 3.10 or newer, and {} is {}.{}.\n"
        "         Name another one: make test PYTHON=python3.12".format(sys.executable, *sys.version_info[:2])
    )

ROOT = Path(__file__).resolve().parent.parent
# What else is there once an extra is installed.
INCLUDED = {"demo": ["demo"], "test": ["demo", "test"]}
# torch 2.4, the oldest that we support, has no wheel for a later Python.
OLDEST_PYTHONS = ("3.10", "3.11", "3.12")
# What pip prints where no index answers; it differs with the version of pip and with what is broken.
UNREACHABLE = (
    "Failed to establish a new connection",
    "Max retries exceeded",
    "NameResolutionError",
    "Read timed out",
    "from versions: none",
)


class SetupError(Exception):
    """The set-up cannot go on; the text says why and what to do."""


class Environment:
    """One virtual environment, the constraints it follows, and the stamp that shows whether it still does."""

    def __init__(self, name: str, constraints: str) -> None:
        self.name = name
        self.path = ROOT / name
        self.constraints = ROOT / "constraints" / constraints
        self.scripts = self.path / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / ("python.exe" if os.name == "nt" else "python")
        self._pip_install = [
            str(self.python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        self._stamp_file = self.path / "set-up.json"
        try:
            self._stamp = json.loads(self._stamp_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._stamp = {}

    def is_made(self, python_version: str | None = None) -> bool:
        """Whether it is there, complete, where it was made, and (if given) of that Python."""
        stamped = self._stamp.get("python")
        return (
            self.python.exists()
            and self._stamp.get("root") == str(ROOT)
            and stamped in ([python_version] if python_version else OLDEST_PYTHONS)
        )

    def make(self, python: str, version: str) -> None:
        if "ensurepip" in run_quietly([python, "-c", "import ensurepip, venv"]):
            raise SetupError(
                f"Python {version} ({python}) cannot make virtual environments: its venv module is missing.\n"
                f"Debian and Ubuntu have it as a package: sudo apt-get install python{version}-venv"
            )
        with Step(f"{self.name}: a virtual environment of Python {version}") as step:
            step.call([python, "-m", "venv", "--clear", str(self.path)])
            # The pip that comes with a Python is as old as that Python.
            step.call([*self._pip_install, "--upgrade", "pip"])
        self._write_stamp(root=str(ROOT), python=version)

    def install(self, extra: str) -> None:
        """Installs the project with the extra, unless nothing changed since that was last done."""
        inputs = hashlib.sha256()
        for path in (ROOT / "pyproject.toml", ROOT / "src" / "inferspan" / "version.py", self.constraints):
            inputs.update(path.read_bytes())
        key = inputs.hexdigest()
        current = self._stamp.get("key") == key
        if current and extra in self._stamp["extras"]:
            return
        first = "" if "key" in self._stamp else " (torch is several hundred MB to a few GB, once)"
        with Step(f"{self.name}: installing inferspan[{extra}]{first}") as step:
            project = f"{ROOT}[{extra}]"
            step.call([*self._pip_install, "--constraint", str(self.constraints), "--editable", project])
        extras = {*INCLUDED[extra], *(self._stamp["extras"] if current else ())}
        self._write_stamp(**{**self._stamp, "key": key, "extras": sorted(extras)})

    def run(self, command: list[str]) -> int:
        """Runs the command as if the environment were activated; on POSIX in place of this process."""
        environ = {**os.environ, "VIRTUAL_ENV": str(self.path)}
        environ["PATH"] = str(self.scripts) + os.pathsep + environ.get("PATH", os.defpath)
        environ.pop("PYTHONHOME", None)
        program = shutil.which(command[0], path=str(self.scripts))
        if program is None:
            raise SetupError(f"{command[0]} is not in {self.name}: no installed package brings it.")
        if os.name != "nt":
            sys.stdout.flush()
            os.execve(program, [program, *command[1:]], environ)
        return subprocess.run([program, *command[1:]], env=environ, check=False).returncode

    def _write_stamp(self, **stamp: object) -> None:
        self._stamp = stamp
        self._stamp_file.write_text(json.dumps(stamp, indent=1), encoding="utf-8")


class Step:
    """One line that says what is done and, as it goes on a terminal and at its end, how long it took."""

    def __init__(self, text: str, topic: str = "set-up") -> None:
        self._text = f"[{topic}] {text} ..."
        self._ticks = sys.stdout.isatty()
        self._start = time.monotonic()

    def __enter__(self) -> "Step":
        print(self._text, end="", flush=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._say(end="\n")

    def call(
        self,
        command: list[str],
        explain: Callable[[list[str], str], str] | None = None,
        cwd: Path | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        """Runs the command; its output is shown only if it fails, as ``explain`` (or `failure`) puts it."""
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=environ
            )
            try:
                while not ended(child, within_s=1):
                    if self._ticks:
                        self._say()
            except KeyboardInterrupt:
                # A terminal has told the child too, and pip removes what it left half done.
                child.wait()
                raise
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
        if child.returncode:
            raise SetupError((explain or failure)(command, text))

    def _say(self, end: str = "") -> None:
        if self._ticks:
            print(f"\r{self._text}", end="")
        print(f" {time.monotonic() - self._start:.0f} s", end=end, flush=True)


def ended(child: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        child.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def failure(command: list[str], output: str) -> str:
    """What went wrong and, where we know, what helps; all that pip printed only where we do not."""
    lines = output.splitlines()
    text = f"This failed: {' '.join(command)}\n"
    if "No space left on device" in output:
        text += "The disk is full: with torch, an environment takes about 6 GB on Linux, less elsewhere."
    elif any(sign in output for sign in UNREACHABLE):
        text += (
            "The package index gave no answer, or has nothing for this Python. Is there a network?"
            " Behind a proxy set HTTPS_PROXY, for another index PIP_INDEX_URL.\n"
        ) + "\n".join(line.strip() for line in lines if line.strip().startswith("ERROR:"))
    else:
        text += "\n".join(lines[-30:])
    return text


def run_quietly(command: list[str]) -> str:
    """What the command prints, its errors too, stripped."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        return str(error)
    return done.stdout.decode(errors="replace").strip()


def this_python() -> tuple[str, str]:
    """The interpreter that runs this file, or that its virtual environment was made of, and the version."""
    return getattr(sys, "_base_executable", None) or sys.executable, "{}.{}".format(*sys.version_info[:2])


def oldest_python() -> tuple[str, str] | None:
    """The oldest interpreter that the oldest dependencies can use, or None."""
    probe = "import ensurepip, sys, venv; print(sys.version_info[0], sys.version_info[1], sep='.')"
    candidates = [[f"python{version}"] for version in OLDEST_PYTHONS]
    candidates.insert(1, [this_python()[0]])
    if os.name == "nt":
        candidates[:0] = [["py", f"-{version}"] for version in OLDEST_PYTHONS]
    for candidate in candidates:
        # A name on PATH proves little: version managers leave one for each Python, usable or not.
        version = run_quietly([*candidate, "-c", probe])
        if version in OLDEST_PYTHONS:
            return run_quietly([*candidate, "-c", "import sys; print(sys.executable)"]), version
    return None


def prepared(extra: str, oldest: bool) -> Environment | None:
    """The environment, ready for use; None where no Python here can have the oldest dependencies."""
    if not oldest:
        environment = Environment(".venv", "newest.txt")
        python, version = this_python()
        if not environment.is_made(version):
            environment.make(python, version)
    else:
        environment = Environment(".venv-oldest", "oldest.txt")
        if not environment.is_made():
            found = oldest_python()
            if found is None:
                return None
            environment.make(*found)
    environment.install(extra)
    return environment


def main(arguments: list[str]) -> int:
    oldest = arguments[:1] == ["--oldest"]
    extra, *command = arguments[oldest:] or [""]
    if extra not in INCLUDED or not command:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        environment = prepared(extra, oldest)
        if environment is None:
            print(
                "[set-up] !!!!! SKIPPED, NOTHING RAN: the oldest dependencies need a Python of"
                f" {', '.join(OLDEST_PYTHONS)} with venv, and none is here !!!!!"
            )
            return 0
        return environment.run(command)
    except SetupError as error:
        print(f"[set-up] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n[set-up] stopped; the next run goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
