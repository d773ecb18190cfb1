"""The backends of the end-to-end tests: built from pinned Go modules, once, into a cache outside of the project.

    python3 scripts/backends.py                    builds what is missing
    python3 scripts/backends.py --path PROGRAM     where PROGRAM is; status 1 if it is not there yet

The programs are otelcol (OpenTelemetry Collector), prometheus, promtool, alertmanager, amtool and jaeger. Each folder
of tests/backends/ is a Go module whose go.mod and go.sum pin one of them and all that it is made of. A Go toolchain
builds them, and the Go module proxy (or GOPROXY) has their sources: some ten minutes on two cores and 6 GB of Go's own
caches the first time. Tempo is on no module proxy: its tests use the `tempo` of PATH, or the one that INFERSPAN_TEMPO
names.

The cache is INFERSPAN_BACKENDS_CACHE, or the folder `inferspan/backends` of the user's caches. A program lies in it
under a key of all that decides about it (module files, flags, platform), so checkouts that pin different versions
share one cache. To be rid of it, delete the folder.
"""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from environment import ROOT, SetupError, Step

MODULES = ROOT / "tests" / "backends"
# What Go prints where no proxy answers.
# The status where the machine lacks something (EX_TEMPFAIL): .ci/run goes on, and the tests that need a program say so.
UNAVAILABLE = 75
TOO_OLD = "requires go >="
NO_ANSWER = "The Go module proxy gave no answer"
UNREACHABLE = ("dial tcp", "no such host", "i/o timeout", "connection refused", "TLS handshake timeout")


@dataclass(frozen=True)
class Module:
    """One Go module of tests/backends/, and the programs that are built from it."""

    folder: str
    title: str
    packages: tuple[tuple[str, str], ...]
    """Names of programs and the packages that they are."""
    tags: str = ""

    def key(self) -> str:
        """Names what is built: the same inputs, the same key."""
        inputs = hashlib.sha256(repr((self.packages, self.tags, platform.system(), platform.machine())).encode())
        for path in sorted((MODULES / self.folder).iterdir()):
            if path.suffix in (".go", ".mod", ".sum"):
                # A checkout on Windows may have other line ends.
                inputs.update(path.name.encode() + path.read_bytes().replace(b"\r\n", b"\n"))
        return inputs.hexdigest()[:12]

    def bin(self) -> Path:
        """Where its programs are, once they are built."""
        return cache() / f"{self.folder}-{self.key()}"

    def program(self, name: str) -> Path:
        return self.bin() / (f"{name}.exe" if os.name == "nt" else name)

    def is_built(self) -> bool:
        return all(self.program(name).is_file() for name, _ in self.packages)

    def build(self, go: str) -> None:
        """All its programs, or none: they appear in the cache together."""
        cache().mkdir(parents=True, exist_ok=True)
        programs = " and ".join(name for name, _ in self.packages)
        environ = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
        # Beside its place, so that one rename brings it there.
        folder = Path(tempfile.mkdtemp(prefix=f"{self.folder}-", dir=cache()))
        try:
            with Step(f"building {programs} ({self.title})", topic="backends") as step:
                for name, package in self.packages:
                    flags = ["-trimpath", "-buildvcs=false", f"-tags={self.tags}", "-ldflags=-s -w"]
                    command = [go, "build", *flags, "-o", str(folder / self.program(name).name), package]
                    step.call(command, explain=failure, cwd=MODULES / self.folder, environ=environ)
            folder.chmod(0o755)
            if not self.is_built():  # or another process was faster
                shutil.rmtree(self.bin(), ignore_errors=True)
                folder.rename(self.bin())
        finally:
            shutil.rmtree(folder, ignore_errors=True)


ALL = (
    Module(
        "prometheus",
        "Prometheus 3.14",
        (
            ("prometheus", "github.com/prometheus/prometheus/cmd/prometheus"),
            ("promtool", "github.com/prometheus/prometheus/cmd/promtool"),
        ),
        tags="remove_all_sd",
    ),
    Module(
        "alertmanager",
        "Alertmanager 0.31",
        (
            ("alertmanager", "github.com/prometheus/alertmanager/cmd/alertmanager"),
            ("amtool", "github.com/prometheus/alertmanager/cmd/amtool"),
        ),
    ),
    Module("jaeger", "Jaeger 2.13", (("jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger"),)),
    Module("collector", "OpenTelemetry Collector 0.159", (("otelcol", "."),), tags="grpcnotrace"),
)


def cache() -> Path:
    """The folder of all that is built."""
    named = os.environ.get("INFERSPAN_BACKENDS_CACHE", "").strip()
    if named:
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "inferspan" / "backends"


def names() -> list[str]:
    """All programs that are built here."""
    return [name for module in ALL for name, _ in module.packages]


def path(name: str) -> Path:
    """Where the program is once it is built.

    Raises:
        SetupError: no program of that name is built here.
    """
    for module in ALL:
        if name in dict(module.packages):
            return module.program(name)
    raise SetupError(f"There is no program {name} here, only {', '.join(names())}.")


def failure(command: list[str], output: str) -> str:
    """What went wrong and, where we know, what helps."""
    lines = [line for line in output.splitlines() if not line.startswith("go: downloading")]
    text = f"This failed: {' '.join(command)}\n"
    if "no space left on device" in output:
        text += "The disk is full: Go's caches and what is built here take about 7 GB (go clean -cache -modcache).\n"
    elif any(sign in output for sign in UNREACHABLE):
        text += f"{NO_ANSWER}. Is there a network? Behind a proxy set HTTPS_PROXY, for another module proxy GOPROXY.\n"
    return text + "\n".join(lines[-15:])


def build_missing() -> None:
    missing = [module for module in ALL if not module.is_built()]
    go = shutil.which("go")
    if missing and go is None:
        without = ", ".join(name for module in missing for name, _ in module.packages)
        print(
            f"[backends] !!!!! NOTHING IS BUILT: no Go toolchain on PATH (https://go.dev/dl), so no {without}:"
            " tests that need one will be skipped !!!!!"
        )
        return
    for module in missing:
        module.build(go)
    print(f"[backends] {', '.join(names())}: all there, in {cache()}")


def main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["--path"] and len(arguments) == 2:
            program = path(arguments[1])
            if not program.is_file():
                raise SetupError(f"{arguments[1]} is not built yet: run `make backends`.")
            print(program)
            return 0
        if arguments:
            print(__doc__, file=sys.stderr)
            return 2
        build_missing()
        return 0
    except SetupError as error:
        print(f"[backends] {error}", file=sys.stderr)
        return UNAVAILABLE if any(sign in str(error) for sign in (NO_ANSWER, TOO_OLD)) else 1
    except KeyboardInterrupt:
        print("\n[backends] stopped; what was built stays, the next run builds the rest", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
