"""Who reports a device, among processes: each test's other owner is a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inferspan import faults
from inferspan.devices import ownership as ownership_module
from inferspan.devices.ownership import Ownership

GPUS = {"GPU-a", "GPU-b"}
OTHER = """
import sys
from inferspan.devices.ownership import Ownership
ownership = Ownership(sys.argv[1], sys.argv[2])
for line in sys.stdin:
    print(",".join(sorted(ownership.owned(set(filter(None, line.strip().split(",")))))), flush=True)
"""


class Other:
    """Another process, which wants what it is told to."""

    def __init__(self, policy: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, policy, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def owned(self, *ids: str) -> set[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(",".join(ids) + "\n")
        self.process.stdin.flush()
        return set(filter(None, self.process.stdout.readline().strip().split(",")))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def other(path: Path) -> Iterator[Callable[[str], Other]]:
    others = []

    def start(policy: str) -> Other:
        others.append(Other(policy, path))
        return others[-1]

    yield start
    for process in others:
        process.kill()


@pytest.mark.parametrize(
    ("policy", "expected"), [pytest.param("always", GPUS, id="always"), pytest.param("never", set(), id="never")]
)
def test_policy_without_a_lock_touches_no_file(path: Path, policy: str, expected: set[str]) -> None:
    assert Ownership(policy, str(path)).owned(GPUS) == expected
    assert not path.exists()


def test_system_without_record_locks_has_every_process_report(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership_module, "fcntl", None)
    assert Ownership("auto", str(path)).owned(GPUS) == GPUS


def test_worker_owns_each_device_until_it_dies(path: Path, other: Callable[[str], Other]) -> None:
    worker = other("auto")
    assert worker.owned("GPU-a") == {"GPU-a"}
    ownership = Ownership("auto", str(path))
    assert ownership.owned(GPUS) == {"GPU-b"}
    assert worker.owned("GPU-a", "GPU-b") == {"GPU-a"}
    worker.kill()
    assert ownership.owned(GPUS) == GPUS
    ownership.release()


def test_released_devices_are_taken_by_another(path: Path, other: Callable[[str], Other]) -> None:
    ownership = Ownership("auto", str(path))
    worker = other("auto")
    assert ownership.owned(GPUS) == GPUS
    assert worker.owned(*GPUS) == set()
    ownership.release()
    assert worker.owned(*GPUS) == GPUS


def test_agent_takes_over_from_workers_and_gives_back_by_dying(path: Path, other: Callable[[str], Other]) -> None:
    ownership = Ownership("auto", str(path))
    assert ownership.owned(GPUS) == GPUS
    agent = other("agent")
    assert agent.owned(*GPUS) == set()  # not yet: the worker has not noticed
    assert ownership.owned(GPUS) == set()
    assert agent.owned(*GPUS) == GPUS
    assert other("agent").owned(*GPUS) == set()
    agent.kill()
    assert ownership.owned(GPUS) == GPUS
    ownership.release()


def test_forked_child_neither_holds_nor_releases_its_parents_devices(path: Path, other: Callable[[str], Other]) -> None:
    ownership = Ownership("auto", str(path))
    assert ownership.owned(GPUS) == GPUS
    child = os.fork()
    if child == 0:
        os._exit(len(ownership.owned(GPUS)))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert other("auto").owned(*GPUS) == set()
    ownership.release()


def test_lock_file_taken_away_is_made_anew(path: Path, other: Callable[[str], Other]) -> None:
    ownership = Ownership("auto", str(path))
    assert ownership.owned(GPUS) == GPUS
    path.unlink()
    assert ownership.owned(GPUS) == GPUS
    assert other("auto").owned(*GPUS) == set()
    ownership.release()


def test_lock_that_cannot_be_made_is_told_once_and_the_devices_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults.forget()
    path = tmp_path / "no" / "such" / "folder"
    ownership = Ownership("auto", str(path))
    assert [ownership.owned(GPUS), ownership.owned(GPUS)] == [GPUS, GPUS]
    assert caplog.messages == [
        f"{path} cannot be used to agree with other processes on who reports the devices (No such file or directory); "
        "this one does. Set INFERSPAN_DEVICES_LOCK, or INFERSPAN_DEVICES=never in all processes but one"
    ]


def test_lock_file_is_usable_by_other_users(path: Path) -> None:
    ownership = Ownership("auto", str(path))
    ownership.owned(GPUS)
    assert path.stat().st_mode & 0o777 == 0o666
    ownership.release()
