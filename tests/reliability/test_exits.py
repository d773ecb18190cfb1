"""The ends of a program: what had ended is exported, each inference once and whole, and the program ends as ever."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from support.ledger import both, program

START = """
import atexit, os, signal, sys, threading, time
from support.ledger import connect, infer, is_on, note
import inferspan
connect()
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and exits of POSIX")


@pytest.mark.parametrize(
    ("way", "status"),
    [
        pytest.param("for n in range(50): infer(n)", 0, id="end", marks=pytest.mark.promise("normal exit", "exported")),
        pytest.param(
            "for n in range(50): infer(n)\nsys.exit(3)",
            3,
            id="exit",
            marks=pytest.mark.promise("`sys.exit`", "exported"),
        ),
        pytest.param("for n in range(50): infer(n)\nsys.exit('no')", 1, id="exit with a message"),
        pytest.param(
            "for n in range(50): infer(n)\n1 / 0",
            1,
            id="exception",
            marks=pytest.mark.promise("an exception that ends the program", "exported"),
        ),
        pytest.param(
            # a shell's background job begins with SIGINT ignored
            "signal.signal(signal.SIGINT, signal.default_int_handler)\nfor n in range(50): infer(n)\n"
            "signal.raise_signal(signal.SIGINT)",
            -2,
            id="SIGINT",
            marks=posix,
        ),
        pytest.param(
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nfor n in range(50): infer(n)\n"
            "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)",
            7,
            id="SIGTERM",
            marks=[posix, pytest.mark.promise("SIGTERM with a handler that exits", "exported")],
        ),
        pytest.param(
            "threading.Thread(target=lambda: (threading.main_thread().join(), [infer(n) for n in range(50)])).start()",
            0,
            id="thread",
            marks=pytest.mark.promise("threads that outlive the main thread", "exported"),
        ),
        pytest.param(
            "atexit.register(lambda: [infer(n) for n in range(50)])",
            0,
            id="exit handler",
            marks=pytest.mark.promise("inferences in exit handlers", "exported"),
        ),
        pytest.param(
            "threads = [threading.Thread(target=lambda i=i: [infer(n) for n in range(i * 10, i * 10 + 10)])"
            " for i in range(5)]\n[t.start() for t in threads]\n[t.join() for t in threads]",
            0,
            id="threads",
        ),
    ],
)
def test_end_of_the_program_exports_what_had_ended(tmp_path: Path, way: str, status: int) -> None:
    ran = both(tmp_path, START + way)

    assert ran.status == status
    assert ran.exported() == ran.ended() == Counter(range(50))
    assert ran.points("gen_ai.client.operation.duration", "gen_ai.operation.name") == {"answer": 50}
    assert ran.points("inferspan.overhead.dropped", "inferspan.drop.reason") == {}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("inferspan.force_flush()", marks=pytest.mark.promise("`force_flush`", "exported"), id="ours"),
        pytest.param("is_on() and trace.get_tracer_provider().force_flush()", id="of the provider"),
        pytest.param(
            "is_on() and trace.get_tracer_provider().shutdown()",
            marks=pytest.mark.promise("shutdown of the provider", "exported"),
            id="shutdown",
        ),
        pytest.param(
            "if is_on():\n    inferspan.uninstrument()\n    trace.get_tracer_provider().force_flush()",
            marks=pytest.mark.promise("`uninstrument`", "exported once the providers flush"), id="uninstrument"),
    ],
)  # fmt: skip
def test_flush_exports_what_had_ended_and_the_death_after_it_takes_nothing(tmp_path: Path, way: str) -> None:
    way = f"from opentelemetry import trace\nfor n in range(50): infer(n)\n{way}\nos._exit(5)"
    ran = both(tmp_path, START + way)

    assert ran.status == 5
    assert ran.exported() == ran.ended() == Counter(range(50))


@posix
@pytest.mark.parametrize(
    ("death", "status"),
    [
        pytest.param("os._exit(4)", 4, marks=pytest.mark.lost("`os._exit`"), id="os._exit"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", -9, marks=pytest.mark.lost("SIGKILL"), id="SIGKILL"),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGTERM)",
            -15,
            marks=pytest.mark.lost("SIGTERM in a program without a handler for it"),
            id="SIGTERM",
        ),
    ],
)
def test_death_without_warning_loses_what_was_not_flushed_and_no_more(tmp_path: Path, death: str, status: int) -> None:
    way = f"for n in range(5): infer(n)\ninferspan.force_flush()\nfor n in range(5, 50): infer(n)\n{death}"
    ran = both(tmp_path, START + way)

    assert ran.status == status
    assert ran.exported() == Counter(range(5))
    assert ran.ended() == Counter(range(50))


@pytest.mark.promise(
    "in flight at exit", "ended with `inferspan.abandoned`, with the phases that ended and the one that ran"
)
def test_inference_in_flight_at_exit_is_ended_with_what_is_known(tmp_path: Path) -> None:
    way = """
begun = threading.Event()
def run():
    with inferspan.inference("answer") as block:
        block.set_attribute("number", 1)
        with block.phase("think"):
            pass
        with block.phase("hesitate"):
            begun.set()
            time.sleep(60)
threading.Thread(target=run, daemon=True).start()
begun.wait()
"""  # fmt: skip
    ran = both(tmp_path, START + way)

    assert ran.exported(tree=("answer", "think", "hesitate")) == Counter([1])
    (root,) = ran.spans("answer")
    assert root["attributes"]["inferspan.abandoned"] is True
    assert root["status"] == "UNSET"
    assert ran.points("gen_ai.client.operation.duration", "gen_ai.operation.name") == {"answer": 1}


GENERATING = """
import torch
from support import tiny
model = tiny.causal_lm()
begun = threading.Event()
class Streamer:
    seen = 0
    def put(self, value):
        self.seen += 1
        if self.seen > 4:
            begun.set()
            time.sleep(60)
    def end(self):
        pass
ids = torch.ones(1, 3, dtype=torch.long)
threading.Thread(
    target=lambda: model.generate(ids, streamer=Streamer(), max_new_tokens=50, min_new_tokens=50, do_sample=False),
    daemon=True,
).start()
begun.wait()
sys.exit(9)
"""


def test_generation_in_flight_at_exit_is_ended_with_its_steps(tmp_path: Path) -> None:
    ran = program(tmp_path, START + GENERATING)

    assert ran.status == 9, ran.stderr
    (root,) = [span for span in ran.spans() if span["parent"] is None]
    assert root["attributes"]["inferspan.abandoned"] is True
    assert root["attributes"]["gen_ai.usage.input_tokens"] == 3
    assert sorted(span["span"] for span in ran.spans() if span is not root) == ["decode", "forward", "prefill"]
    (decode,) = ran.spans("decode")
    assert decode["attributes"]["inferspan.decode.steps"] == 2  # after three tokens


@pytest.mark.fault("interpreter shutdown with daemon threads running", "what ended before the exit is exported")
def test_daemon_threads_that_infer_through_the_exit_disturb_nothing(tmp_path: Path) -> None:
    way = """
stop = threading.Event()
def run(start):
    n = start
    while True:
        infer(n)
        n += 1
        time.sleep(0.002)
for i in range(4):
    threading.Thread(target=run, args=(i * 1000000,), daemon=True).start()
for n in range(-50, 0): infer(n)
sys.exit(6)
"""
    ran = program(tmp_path, START + way)

    assert (ran.status, ran.stdout, ran.stderr) == (6, "", "")
    exported = {span["attributes"]["number"] for span in ran.spans("answer")}
    assert set(range(-50, 0)) <= exported
    ids = [span["id"] for span in ran.spans()]
    assert len(ids) == len(set(ids))


@posix
@pytest.mark.promise("several ends at once: SIGTERM in the midst of `sys.exit`", "exported once")
def test_signal_during_the_exit_exports_once(tmp_path: Path) -> None:
    way = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(8))
for n in range(50): infer(n)
inferspan.force_flush()
for n in range(50, 100): infer(n)
signal.raise_signal(signal.SIGTERM)
"""
    ran = both(tmp_path, START + way)

    assert ran.status == 8
    assert ran.exported() == ran.ended() == Counter(range(100))
