"""Programs in bad circumstances: signals, clocks, disks, interpreters. Each ends as it does without Inferspan."""

from __future__ import annotations

import errno
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from support import records
from support.ledger import TREE, Ran, both, program

START = """
import importlib, os, signal, sys, threading, time
from support.ledger import connect, infer, is_on, note
import inferspan
"""
END = """
print([infer(n) for n in range(30)])
sys.exit(3)
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


@posix
@pytest.mark.fault(
    "a signal handler that infers",
    "in a phase it belongs to that phase; an `inference()` block, and what runs outside, is an inference of its own",
)
def test_signal_handler_that_infers_neither_hangs_nor_loses_anything(tmp_path: Path) -> None:
    code = """
connect()
count = 0
def handler(*_):
    global count
    count += 1
    with inferspan.inference("handler") as block, block.phase("handle"):
        pass
    if count % 50 == 0:
        inferspan.force_flush()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
n = 0
while count < 200:
    infer(n)
    n += 1
    inferspan.force_flush() if n % 50 == 0 else None
signal.setitimer(signal.ITIMER_REAL, 0)
os.kill(os.getpid(), signal.SIGALRM)
sys.exit(3)
"""
    ran = both(tmp_path, START + code, same_inferences=False)  # as many as there is time for

    assert ran.exported(None) == ran.ended() == Counter(range(len(ran.ended())))
    assert ran.spans("handler")[-1]["parent"] is None


@pytest.mark.fault(
    "a signal handler that infers",
    "in a phase it belongs to that phase; an `inference()` block, and what runs outside, is an inference of its own",
)
def test_signal_handler_in_the_midst_of_the_end_of_a_phase_does_not_wait_for_itself() -> None:
    inference = records.inference("answer")

    def interrupted() -> None:
        with inference.phases.lock:  # as a handler finds it
            inference.end(inference.begin("handle"))

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(30)

    assert not thread.is_alive()


@pytest.mark.fault(
    "a clock that jumps", "durations and order are of the clock that does not; only the place in time jumps"
)
def test_clock_that_jumps_changes_no_duration(tmp_path: Path) -> None:
    code = """
import itertools, time
jumps = itertools.cycle([0, 3600, -7200, 86400])
now = time.time_ns
time.time_ns = lambda: now() + next(jumps) * 10**9
time.time = lambda: time.time_ns() / 1e9
"""
    ran = both(
        tmp_path, code + START + "connect()" + END, same_errors=False
    )  # the SDK's own deadlines are of that clock

    assert ran.exported() == ran.ended() == Counter(range(30))  # children lie within their root
    assert all(0 <= span["end"] - span["start"] < 10**10 for span in ran.spans())


@posix
@pytest.mark.fault(
    "a disk that is full, for the lock file of the devices",
    "one warning says what to set; this process reports the devices",
)
@pytest.mark.fault("a file system that is read-only", "one warning says what to set; this process reports the devices")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_lock_file_that_cannot_be_made_is_no_trouble(tmp_path: Path, number: int) -> None:
    code = f"""
opened = os.open
def refuse(path, flags, *args, **kwargs):
    if flags & os.O_CREAT and str(path).endswith("devices.lock"):
        raise OSError({number}, os.strerror({number}))
    return opened(path, flags, *args, **kwargs)
os.open = refuse
connect()
print([infer(n) for n in range(10)])
inferspan.force_flush()
"""
    extra = {"INFERSPAN_DEVICES": "auto", "INFERSPAN_DEVICES_LOCK": str(tmp_path / "devices.lock")}
    ran = both(tmp_path, START + code + END.replace("range(30)", "range(10, 30)"), same_errors=False, **extra)

    assert ran.exported() == ran.ended() == Counter(range(30))
    assert ran.stderr.count("InferspanWarning") == 1
    assert "Set INFERSPAN_DEVICES_LOCK" in ran.stderr
    assert ran.points("inferspan.process.memory.usage") or ran.points("process.memory.usage")


REAL = """
import torch
from support import tiny
import transformers

connect()
classify = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
generator = tiny.causal_lm()

def real(n):
    label = classify("the cat sat on the mat")[0]["label"]
    with torch.no_grad():
        ids = torch.ones(1, 3, dtype=torch.long)
        ids = generator.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return label, ids.tolist()
"""
REAL_SPANS = {
    "text-classification BertForSequenceClassification": 1,
    "tokenize": 1,
    "forward": 2,
    "detokenize": 1,
    "text_completion LlamaForCausalLM": 1,
    "prefill": 1,
    "decode": 1,
}


def names(ran: Ran) -> Counter[str]:
    return Counter(span["span"] for span in ran.spans())


@pytest.mark.fault("`PYTHONOPTIMIZE=2`: no assertions, no docstrings", "as ever")
def test_optimized_interpreter_is_as_any(tmp_path: Path) -> None:
    code = """
import torch
from support.mlp import seeded
assert False
connect()
model = seeded()
with torch.no_grad():
    print(model(torch.ones(1, 8)).shape)
print([infer(n, model) for n in range(30)])
sys.exit(3)
"""
    ran = both(tmp_path, START + code, options=("-OO",))

    assert ran.status == 3
    assert ran.exported((*TREE, "forward")) == ran.ended() == Counter(range(30))
    assert names(ran) == {"answer": 30, "think": 30, "forward": 31}


@pytest.mark.fault(
    "a module reload: of `inferspan`, of instrumented modules, of the program's own", "each inference is exported once"
)
def test_modules_that_are_reloaded_are_recorded_once(tmp_path: Path) -> None:
    code = """
import transformers.pipelines.base, support.mlp
print(real(0))
importlib.reload(inferspan)
print(real(1))
importlib.reload(support.mlp)
model = support.mlp.seeded()
with torch.no_grad():
    print(model(torch.ones(1, 8)).shape)
importlib.reload(transformers.pipelines.pt_utils)
print(real(2))
print(infer(0))
sys.exit(3)
"""
    ran = both(tmp_path, START + REAL + code)

    assert ran.exported() == Counter([0])
    expected = Counter({name: 3 * number for name, number in REAL_SPANS.items()})
    assert names(ran) == expected + Counter({"forward": 1, "answer": 1, "think": 1})


@pytest.mark.fault("a low recursion limit", "a `RecursionError` a few calls earlier than without, and nothing else")
def test_low_recursion_limit_gives_the_programs_own_error_and_nothing_else(tmp_path: Path) -> None:
    code = """
sys.setrecursionlimit(400)

def at(depth):
    if depth:
        return at(depth - 1)
    return infer(0)

found = []
for depth in range(395, 0, -1):
    try:
        found.append(at(depth))
    except RecursionError:
        found.append(None)
assert set(found) == {1, None}, set(found)
first = found.index(1)
note(calls=395 - first)
assert found[first:] == [1] * len(found[first:])  # no gap: where it fits, it fits from there on
from inferspan.core import current
print(current.here(), len(current.state.open))
print([infer(n) for n in range(1, 31)])
sys.exit(3)
"""
    without = program(tmp_path, START + code, instrumented=False)
    ran = program(tmp_path, START + "connect()\n" + code)
    assert (without.outcome, ran.outcome[:2]) == ((3, ran.stdout, ""), (3, ran.stdout)), ran.stderr

    calls, most = [line["calls"] for line in [*ran.lines, *without.lines] if "calls" in line]
    assert most - 25 <= calls <= most
    exported = ran.exported(None)
    assert [exported[n] for n in range(1, 31)] == [1] * 30
    dropped = ran.points("inferspan.overhead.dropped", "inferspan.drop.reason")
    assert exported[0] + dropped["fault"] >= ran.ended()[0]


@pytest.mark.fault(
    "a thread that cannot be started", "emitted at the next flush or exit, on the thread that asks for it"
)
def test_thread_that_cannot_be_started_leaves_all_to_the_exit(tmp_path: Path) -> None:
    code = """
connect()
start = threading.Thread.start
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
print([infer(n) for n in range(10)])
print(inferspan.force_flush())
"""
    ran = both(tmp_path, START + code + END.replace("range(30)", "range(10, 30)"))

    assert ran.exported() == ran.ended() == Counter(range(30))
