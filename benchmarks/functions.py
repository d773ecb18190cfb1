"""Which functions run for one inference, and how often: ours on the calling thread, what a plan has not yet decided;
ours and OpenTelemetry's where it is emitted.

    python benchmarks/functions.py [classification|generate|model]

Times depend on the machine; the number of functions does not, so a test holds it
(``tests/integration/test_calling_thread.py``). Counted is what Python calls, by ``sys.setprofile``, once the call site
is warm; what a comprehension or a generator adds counts too.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import opentelemetry.context

import inferspan
from inferspan.core.state import state

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

OURS = str(Path(inferspan.__file__).parent)
OPENTELEMETRY = str(Path(opentelemetry.context.__file__).parents[1])


def functions_of(call: Callable[[], Any], *folders: str) -> Counter[str]:
    """The functions in these folders (by default ours) that one call runs on this thread, by file and name."""
    places, found = folders or (OURS,), Counter[str]()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        for folder in places if event == "call" else ():
            if code.co_filename.startswith(folder):
                found[f"{code.co_filename[len(folder) + 1 :]}:{code.co_name}"] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def emitting(call: Callable[[], Any]) -> tuple[Counter[str], Counter[str]]:
    """Our functions that emit what one call has recorded, and OpenTelemetry's; on this thread instead of the worker."""
    pipeline: Any = state.sink
    found = []
    for folder in (OURS, OPENTELEMETRY):
        with pipeline._worker._emitting:  # which keeps the worker from it
            pipeline.drain(60)
            call()
            found.append(functions_of(lambda: pipeline.drain(60), folder))
    return found[0], found[1]


def calls() -> dict[str, Callable[[], Any]]:
    """What is counted, each made ready and warm."""
    import torch
    import transformers

    from support import tiny

    tokenizer = tiny.text_tokenizer()
    classify = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tokenizer)
    generator, model = tiny.causal_lm(), tiny.classifier()
    ids = tokenizer("the cat", return_tensors="pt")

    def call_model() -> Any:
        with torch.no_grad():
            return model(**ids)

    found = {
        "classification": lambda: classify("the cat"),
        "generate": lambda: generator.generate(**ids, max_new_tokens=8),
        "model": call_model,
    }
    for call in found.values():
        call()
        call()
    return found


def main() -> None:
    from support.recorder import Recorder

    recorder = Recorder()
    recorder.instrument(devices="never")
    wanted = sys.argv[1:]
    for name, call in calls().items():
        if wanted and name not in wanted:
            continue
        counted = functions_of(call)
        print(f"{name}: {sum(counted.values())} calls of {len(counted)} functions")
        for function, number in counted.most_common():
            print(f"  {number:3d}  {function}")
        for whose, counted in zip(("ours", "OpenTelemetry's"), emitting(call), strict=True):
            print(f"{name}, emitted: {sum(counted.values())} calls of {len(counted)} functions of {whose}")
            for function, number in counted.most_common(15):
                print(f"  {number:3d}  {function}")
    recorder.close()


if __name__ == "__main__":
    main()
