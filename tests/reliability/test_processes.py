"""Processes that a program makes, in whichever way: each tells its own, nobody tells another's, and all end as ever."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from support.ledger import TREE, both, program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and signals of POSIX")

START = """
import multiprocessing, os, signal, subprocess, sys, threading, time
from support.ledger import connect, infer, is_on, note
import inferspan

def several(first, number=10):
    return [infer(n) for n in range(first, first + number)]

def wait_for(child):
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

if __name__ != "__mp_main__" or "late" not in sys.argv:
    connect()
"""


def file(folder: Path, code: str) -> str:
    """The program as a file, which spawned processes import."""
    path = folder / "program.py"
    path.write_text(START + code)
    return str(path)


# -- multiprocessing ---------------------------------------------------------------------------------------------------

MULTIPROCESSING = """
def fail():
    several(20)
    sys.exit(3)

def thread():
    threads = [threading.Thread(target=several, args=(first,)) for first in (40, 50)]
    [t.start() for t in threads]
    [t.join() for t in threads]

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    several(100)
    processes = [
        context.Process(target=several, args=(0,)),
        context.Process(target=several, args=(10,), daemon=True),
        context.Process(target=fail),
        context.Process(target=thread),
    ]
    with inferspan.inference("answer") as block:
        block.set_attribute("number", 110)
        with block.phase("think"):
            [process.start() for process in processes]
    note(ended=110)
    [process.join() for process in processes]
    print([process.exitcode for process in processes])
    with context.Pool(2, maxtasksperchild=2) as pool:
        print(pool.map(infer, range(60, 70), chunksize=1))
        pool.close()
        pool.join()
    several(120)
"""


@pytest.mark.promise("`multiprocessing` by fork, spawn and fork server: processes and pools", "exported")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_and_pools_export_their_own(tmp_path: Path, method: str) -> None:
    ran = both(tmp_path, file(tmp_path, MULTIPROCESSING), method)

    assert ran.stdout == f"[0, 0, 3, 0]\n{list(range(61, 71))}\n"
    assert ran.exported() == ran.ended() == Counter([*range(30), *range(40, 70), *range(100, 111), *range(120, 130)])
    counted = ran.points("gen_ai.client.operation.duration", "gen_ai.operation.name")
    assert counted == {"answer": sum(ran.ended().values())}


@pytest.mark.promise("workers that instrument themselves, in a pool's initializer", "exported")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_that_instrument_themselves_export_their_own(tmp_path: Path, method: str) -> None:
    code = """
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(2, initializer=connect) as pool:
        print(pool.map(infer, range(10)))
        pool.close()
        pool.join()
"""
    script = START.replace("    connect()\n", "    pass\n") + code
    (tmp_path / "program.py").write_text(script)
    ran = program(tmp_path, str(tmp_path / "program.py"), method)

    assert (ran.status, ran.stdout) == (0, f"{list(range(1, 11))}\n"), ran.stderr
    assert ran.exported() == ran.ended() == Counter(range(10))


@pytest.mark.promise(
    "a pool that is made, or a process forked, inside an inference",
    "each inference of a worker is exported, under that one",
)
def test_pool_inside_an_inference_exports_each_of_its_own_under_it(tmp_path: Path) -> None:
    code = """
if __name__ == "__main__":
    with inferspan.inference("answer") as block:
        block.set_attribute("number", 100)
        with block.phase("think"):
            pool = multiprocessing.get_context("fork").Pool(2)
            print(pool.map(infer, range(10)))
            pool.close()
            pool.join()
    note(ended=100)
"""  # fmt: skip
    ran = both(tmp_path, file(tmp_path, code))

    assert ran.exported() == ran.ended() == Counter([*range(10), 100])
    (outer,) = [span for span in ran.spans("answer") if span["parent"] is None]
    assert {span["parent"] for span in ran.spans("answer") if span is not outer} == {outer["id"]}
    assert {span["trace"] for span in ran.spans()} == {outer["trace"]}


@pytest.mark.lost("workers of a `Pool` that is terminated: the default SIGTERM")
def test_pool_that_is_terminated_loses_only_what_its_workers_had_not_flushed(tmp_path: Path) -> None:
    code = """
if __name__ == "__main__":
    several(100)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map(infer, range(10)))
    several(110)
"""
    ran = both(tmp_path, file(tmp_path, code))

    assert ran.exported() == Counter(range(100, 120))


LOADER = """
import torch
from support.mlp import seeded

MODEL = seeded()

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return infer(index, MODEL)

if __name__ == "__main__":
    infer(100, MODEL)
    with inferspan.inference("answer") as block:
        block.set_attribute("number", 101)
        with block.phase("think"):
            pass
        loader = torch.utils.data.DataLoader(Numbers(), num_workers=1, multiprocessing_context=sys.argv[1])
        found = [int(number) for number in loader]
        with torch.no_grad():
            MODEL(torch.ones(1, 8))
    note(ended=101)
    print(found)
"""


@pytest.mark.promise("workers of a DataLoader that infer", "exported")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_a_data_loader_export_their_own(tmp_path: Path, method: str) -> None:
    ran = program(tmp_path, file(tmp_path, LOADER), method)

    assert (ran.status, ran.stdout) == (0, f"{list(range(1, 9))}\n"), ran.stderr
    assert ran.exported((*TREE, "forward")) == ran.ended() == Counter([*range(8), 100, 101])


@pytest.mark.promise("Celery's prefork (billiard): tasks, recycling, warm shutdown", "exported")
def test_workers_of_celerys_pool_export_their_own(tmp_path: Path) -> None:
    code = """
if __name__ == "__main__":
    import billiard.pool
    several(100)
    pool = billiard.pool.Pool(2, maxtasksperchild=3)
    print(pool.map(infer, range(10), chunksize=1))
    pool.close()
    pool.join()
    process = billiard.Process(target=several, args=(20,))
    process.start()
    process.join()
    print(process.exitcode)
"""
    ran = both(tmp_path, file(tmp_path, code))

    assert ran.stdout == f"{list(range(1, 11))}\n0\n"
    assert ran.exported() == ran.ended() == Counter([*range(10), *range(20, 30), *range(100, 110)])


@pytest.mark.promise("SIGTERM to a worker of Celery's pool", "exported")
def test_worker_of_celerys_pool_that_is_terminated_exports_its_own(tmp_path: Path) -> None:
    code = """
if __name__ == "__main__":
    import billiard.pool
    pool = billiard.pool.Pool(1)
    print(pool.map(infer, range(10)), flush=True)
    pool._worker_handler.terminate()  # else another worker takes its place
    pool._worker_handler.stop()
    os.kill(pool._pool[0].pid, signal.SIGTERM)
    pool._pool[0].join(30)
    # The pool sends SIGTERM again when it hears that the worker is about to leave, and where that has any other thread,
    # the SDK's for one, it may be gone with the lock of the queue that the pool's end would take.
    os._exit(0)
"""
    ran = both(tmp_path, file(tmp_path, code))

    assert ran.exported() == ran.ended() == Counter(range(10))


# -- killed at rest ----------------------------------------------------------------------------------------------------

KILLED = """
import json

def until_exported(number):
    deadline = time.monotonic() + 60
    while is_on() and time.monotonic() < deadline:
        lines = [json.loads(line) for line in open(os.environ["LEDGER"])]
        points = [line["value"] for line in lines if line.get("metric") == "gen_ai.client.operation.duration"]
        if points[-1:] == [number] and sum(line.get("span") == "answer" for line in lines) == number:
            return
        time.sleep(0.01)

def killed(first):
    several(first)
    until_exported(10)
    several(first + 10)
    until_exported(20)
    os.kill(os.getpid(), signal.SIGKILL)

"""


@pytest.mark.promise("SIGKILL to a worker of `multiprocessing` in which nothing has run for 200 ms", "exported")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_that_is_killed_at_rest_has_exported_its_own(tmp_path: Path, method: str) -> None:
    code = (
        KILLED
        + """
if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=killed, args=(0,))
    process.start()
    process.join()
    print(process.exitcode)
"""
    )
    ran = both(tmp_path, file(tmp_path, code), method)

    assert ran.stdout == "-9\n"
    assert ran.exported() == ran.ended() == Counter(range(20))


@pytest.mark.promise("SIGKILL to a worker of Celery's pool (billiard) in which nothing has run for 200 ms", "exported")
def test_worker_of_celerys_pool_that_is_killed_at_rest_has_exported_its_own(tmp_path: Path) -> None:
    code = (
        KILLED
        + """
if __name__ == "__main__":
    import billiard
    process = billiard.Process(target=killed, args=(0,))
    process.start()
    process.join()
    print(process.exitcode)
"""
    )
    ran = both(tmp_path, file(tmp_path, code))

    assert ran.stdout == "-9\n"
    assert ran.exported() == ran.ended() == Counter(range(20))


@pytest.mark.promise("SIGKILL to any process at rest, with `INFERSPAN_FLUSH_AT_REST=always`", "exported")
def test_process_that_is_killed_at_rest_has_exported_its_own_where_that_is_asked_for(tmp_path: Path) -> None:
    ran = program(tmp_path, file(tmp_path, KILLED + "killed(0)"), INFERSPAN_FLUSH_AT_REST="always")

    assert ran.status == -9
    assert ran.exported() == ran.ended() == Counter(range(20))
    assert ran.points("gen_ai.client.operation.duration") == {(): 20}


# -- os.fork -----------------------------------------------------------------------------------------------------------

FORKS = """
def child():
    several(0)
    return 7

several(100)
inferspan.force_flush()
with inferspan.inference("answer") as block:
    block.set_attribute("number", 110)
    with block.phase("think"):
        pid = os.fork()
        if pid == 0:
            with inferspan.inference("of the parent's"):
                pass
    if pid == 0:
        block.__exit__(None, None, None)
        sys.exit(child())
note(ended=110)
wait_for(pid)
several(120)
"""

THREADS = """
import random

def loop(first):
    for n in range(first, first + 200):
        infer(n)

def fork(first):
    for n in range(first, first + 3):
        with inferspan.inference("answer") as block:
            block.set_attribute("number", n)
            with block.phase("think"):
                pid = os.fork()
        if pid == 0:
            try:
                infer(n + 50000)
                inferspan.force_flush()
            finally:
                os._exit(5)
        note(ended=n)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

codes = []
threads = [threading.Thread(target=loop, args=(n * 1000,)) for n in (1, 2)]
threads += [threading.Thread(target=fork, args=(n * 1000,)) for n in (10, 11)]
[t.start() for t in threads]
[t.join() for t in threads]
print(codes)
"""


@pytest.mark.promise(
    "`os.fork` in the midst of an inference, in the main thread",
    "the parent exports it, the child its own; neither exports the other's",
)
def test_fork_inside_an_inference_leaves_each_process_its_own(tmp_path: Path) -> None:
    ran = both(tmp_path, file(tmp_path, FORKS))

    assert ran.stdout == "7\n"
    assert ran.exported() == ran.ended() == Counter([*range(10), *range(100, 111), *range(120, 130)])
    assert {span["span"] for span in ran.spans()} == {*TREE, "of the parent's"}
    counted = ran.points("gen_ai.client.operation.duration", "gen_ai.operation.name")
    # and not again what the parent had counted at the fork
    assert counted == {"answer": sum(ran.ended().values()), "of the parent's": 1}


@pytest.mark.promise("`os.fork` in any thread, others inferring meanwhile", "the same; no deadlock")
def test_fork_in_threads_while_others_infer_leaves_each_process_its_own(tmp_path: Path) -> None:
    ran = program(tmp_path, file(tmp_path, THREADS))

    assert (ran.status, ran.stdout) == (0, f"{[5] * 6}\n"), ran.stderr
    assert ran.exported() == ran.ended()
    assert len(ran.ended()) == 2 * 200 + 2 * 3 * 2


@pytest.mark.promise("`os.fork` while another thread collects or exports metrics", "the same; no deadlock")
@pytest.mark.parametrize("what", ["collects", "exports"])
def test_fork_while_another_thread_is_at_the_metrics_leaves_no_lock_held_in_the_child(
    tmp_path: Path, what: str
) -> None:
    code = """
from opentelemetry import metrics
from support.ledger import Points

parent, busy, forked = os.getpid(), threading.Event(), threading.Event()

def pause(*_):
    if os.getpid() == parent:
        busy.set()
        forked.wait()
    return []

if sys.argv[1] == "collects":
    metrics.get_meter("own").create_observable_gauge("own", [pause])
else:
    export = Points.export
    Points.export = lambda *given, **named: pause() or export(*given, **named)
several(100)
threading.Thread(target=metrics.get_meter_provider().force_flush).start()
busy.wait()
pid = os.fork()
if pid == 0:
    several(0)
    os._exit(0 if inferspan.force_flush(5) else 9)
wait_for(pid)
forked.set()
several(120)
"""
    ran = program(tmp_path, file(tmp_path, code), what)

    assert ran.outcome == (0, "0\n", "")
    assert ran.exported() == ran.ended() == Counter([*range(10), *range(100, 110), *range(120, 130)])
    counted = ran.points("gen_ai.client.operation.duration", "gen_ai.operation.name")
    assert counted == {"answer": 30}


@pytest.mark.promise("fork with exec in the midst of an inference (`subprocess`, `os.execv`)", "exported")
def test_fork_with_exec_inside_an_inference_leaves_each_process_its_own(tmp_path: Path) -> None:
    code = """
if len(sys.argv) > 1:
    several(int(sys.argv[1]))
    sys.exit(6)
with inferspan.inference("answer") as block:
    block.set_attribute("number", 100)
    with block.phase("think"):
        print(subprocess.run([sys.executable, __file__, "0"]).returncode)
        pid = os.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, __file__, "10"])
        wait_for(pid)
note(ended=100)
several(110)
"""
    ran = both(tmp_path, file(tmp_path, code))

    assert ran.stdout == "6\n6\n"
    assert ran.exported() == ran.ended() == Counter([*range(20), 100, *range(110, 120)])
