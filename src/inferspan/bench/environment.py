"""Everything around the measurement that one needs to repeat it: machine, devices, versions, settings.

Only what changes speed or results, and nothing private: of the environment's variables those listed here, no host
name, no user, no path. What cannot be read is absent.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from inferspan import semconv
from inferspan.bench.folders import without_folders
from inferspan.bench.results import Environment, Scalar
from inferspan.devices import reader as r
from inferspan.devices.sampler import Snapshot

_DISTRIBUTIONS = (
    "inferspan", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "sentence-transformers", "numpy",
    "torchao", "bitsandbytes", "flash-attn", "kernels", "triton", "opentelemetry-sdk",
)  # fmt: skip
_VARIABLES = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|ATEN|PYTORCH|TORCH|TORCHINDUCTOR|TRITON|CUBLAS|CUDNN|NCCL|NVIDIA|HIP|HSA|INFERSPAN)_\w+"
    r"|CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING|DEVICE_ORDER|MODULE_LOADING|DEVICE_MAX_CONNECTIONS)"
    r"|TOKENIZERS_PARALLELISM|LD_PRELOAD|MALLOC_\w+|OTEL_SEMCONV_STABILITY_OPT_IN|PYTHONMALLOC|PYTHON_JIT|PYTHONHASHSEED"
)
_SECRET = re.compile(r"TOKEN$|TOKEN_|KEY|SECRET|PASSWORD")
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_COMMAND_S = 5.0


def environment(snapshot: Snapshot | None) -> Environment:
    """What is here now. Torch's part is there once torch is imported; ``snapshot`` has the devices."""
    return Environment(
        machine=_known(_machine()),
        devices=[] if snapshot is None else [_known(_device(*found)) for found in snapshot.samples],
        versions=_versions(),
        settings=_known({**_torch_settings(), **_variables()}),
    )


def _machine() -> dict[str, Scalar]:
    import psutil

    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cpu_model": _cpu_model(),
        "cpus": os.cpu_count(),
        "cores": psutil.cpu_count(logical=False),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_quota": _cpu_quota(),
        "cpu_mhz_max": (frequency.max or None) if frequency else None,
        "cpu_governor": _line(_CPUFREQ / "scaling_governor"),
        "cpu_boost": _boost(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_limit_bytes": _number(_line(Path("/sys/fs/cgroup/memory.max"))),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "on_battery": _on_battery(),
    }


def _device(device: r.Device, sample: r.Sample) -> dict[str, Scalar]:
    return {
        "name": device.name or None,
        "uuid": device.id,
        "driver": device.facts.get(semconv.HW_DRIVER_VERSION),
        "memory_bytes": _whole(sample.get(r.MEMORY_LIMIT)),
        "power_limit_w": sample.get(r.POWER_LIMIT),
        "sm_clock_hz": sample.get(r.SM_CLOCK),
        "memory_clock_hz": sample.get(r.MEMORY_CLOCK),
        "pcie_generation": _whole(sample.get(r.PCIE_GENERATION)),
        "pcie_width": _whole(sample.get(r.PCIE_WIDTH)),
        "temperature_c": sample.get(r.TEMPERATURE),
        "mig_parent": device.parent or None,
    }


def _versions() -> dict[str, str]:
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    found.update({name: version for name in _DISTRIBUTIONS if (version := _version(name)) is not None})
    torch = sys.modules.get("torch")
    if torch is not None:
        known = {"cuda": torch.version.cuda, "hip": torch.version.hip}
        if torch.backends.cudnn.is_available():
            known["cudnn"] = torch.backends.cudnn.version()
        found.update({name: str(version) for name, version in known.items() if version})
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _torch_settings() -> dict[str, Scalar]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "quantized_engine": torch.backends.quantized.engine,
    }


def _variables() -> dict[str, Scalar]:
    return {
        name: without_folders(value)
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name) and not (_SECRET.search(name) and name != "TOKENIZERS_PARALLELISM")
    }


def _cpu_model() -> str | None:
    if sys.platform == "linux":
        try:
            text = Path("/proc/cpuinfo").read_text(errors="replace")
        except OSError:
            text = ""
        found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
        return found[1].strip() if found else platform.processor() or None
    if sys.platform == "darwin":
        try:
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True)
            return done.stdout.strip() or None
        except (OSError, subprocess.SubprocessError):
            return None
    return platform.processor() or None


def _cpu_quota() -> float | None:
    """CPUs that the container may use at most."""
    limit, _, period = (_line(Path("/sys/fs/cgroup/cpu.max")) or "").partition(" ")
    quota, whole = _number(limit), _number(period)
    return None if not quota or not whole else quota / whole


def _boost() -> bool | None:
    no_turbo = _line(Path("/sys/devices/system/cpu/intel_pstate/no_turbo"))
    boost = _line(Path("/sys/devices/system/cpu/cpufreq/boost"))
    return no_turbo == "0" if no_turbo else boost == "1" if boost else None


def _on_battery() -> bool | None:
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _known(found: dict[str, Scalar]) -> dict[str, Scalar]:
    return {name: value for name, value in found.items() if value is not None}
