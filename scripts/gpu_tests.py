"""tests/gpu on a machine that has torch, transformers, pytest and a GPU, and no package index.

    python3 scripts/gpu_tests.py pack                  where there is an index: the packages that such a machine lacks
    python3 scripts/gpu_tests.py test [ARGUMENT...]    there: pytest tests/gpu, with these and the Python that runs this

What is packed lies unpacked in `.gpu-wheels`, some 3 MiB, in the versions of constraints/newest.txt: pure Python, so
that it does not matter which Python and which processor packs it. It goes with the checkout; git ignores it. What the
machine has besides OpenTelemetry (packaging, typing_extensions) is used from there. psutil is not packed: it is
compiled, and only what is off in these tests needs it. No environment is made, nothing is installed, and `test` uses no
network.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from environment import ROOT, SetupError, Step

PACKED = ROOT / ".gpu-wheels"
WANTED = ("opentelemetry-sdk", "opentelemetry-instrumentation", "nvidia-ml-py")
NEEDED = ("torch", "transformers", "pytest")
SIZE_MAX = 64 << 20
"""What can be carried along in one piece."""
PURE = ("--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none", "--python-version=3.10")


def pack() -> int:
    """Download and unpack; what was packed before is replaced once all is there."""
    with tempfile.TemporaryDirectory() as folder, Step(".gpu-wheels: what a machine with torch lacks", "gpu") as step:
        constraints = ROOT / "constraints" / "newest.txt"
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *PURE]
        step.call([*download, "--constraint", str(constraints), "--dest", folder, *WANTED])
        unpacked = Path(folder) / "unpacked"
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked / "-".join(wheel.name.split("-")[:2]))
        size = sum(path.stat().st_size for path in unpacked.rglob("*") if path.is_file())
        if size > SIZE_MAX:
            raise SetupError(f"What is packed has {size >> 20} MiB; {SIZE_MAX >> 20} MiB is what can be carried.")
        shutil.rmtree(PACKED, ignore_errors=True)
        shutil.move(unpacked, PACKED)
    print("\n".join(f"  {folder.name}" for folder in sorted(PACKED.iterdir())))
    return 0


def test(arguments: list[str]) -> int:
    """Run them by the Python that runs this, with what it lacks from the pack."""
    missing = [name for name in NEEDED if not is_installed(name)]
    if missing:
        raise SetupError(f"{sys.executable} has no {', '.join(missing)}: name another one, make gpu-test PYTHON=...")
    if not PACKED.is_dir() and not all(map(is_installed, WANTED)):
        raise SetupError(
            "There is no .gpu-wheels here: make gpu-pack where there is a package index, and copy it along"
        )
    path = [ROOT / "src", ROOT / "tests", *lacking()]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, [os.getenv("PYTHONPATH")])])}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode


def lacking() -> Iterator[Path]:
    """The packed folders that this Python needs: OpenTelemetry's in any case, as its packages are of one version."""
    for folder in sorted(PACKED.iterdir()) if PACKED.is_dir() else ():
        name = folder.name.partition("-")[0]
        if name.startswith("opentelemetry") or not is_installed(name):
            yield folder


def is_installed(name: str) -> bool:
    """Whether this Python has the distribution."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["test"]:
            return test(arguments[1:])
        if arguments == ["pack"]:
            return pack()
    except SetupError as error:
        print(f"[gpu] {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
