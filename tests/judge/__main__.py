"""``python -m judge --programs 1000 --seed 7``: judge so many random programs, and print each false claim once."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections import Counter
from random import Random

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1", INFERSPAN_DEVICES="never")

import torch

import inferspan
from inferspan import faults
from judge.judging import FAMILIES, Void, judge
from judge.program import Program, draw, parse, shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m judge", description=__doc__)
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, help="only programs of this kind")
    parser.add_argument("--program", help="one program, as it was printed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new program after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults.reraise = True
    gc.collect()
    gc.freeze()  # a manager of continuous batching collects garbage when it stops: without the modules that is quick
    families = {options.family: FAMILIES[options.family]} if options.family else FAMILIES
    if options.program:
        programs = iter([parse(options.program, FAMILIES)])
    else:
        random = Random(options.seed)
        programs = (draw(random, families) for _ in range(options.programs))
    began, judged, void, tally = time.monotonic(), Counter(), Counter(), Counter()
    failed: Counter[str] = Counter()
    for program in programs:
        if time.monotonic() - began > options.seconds:
            break
        judged[program.family.name] += 1
        for about, said in _claims(program, tally, void).items():
            least = shrink(program, lambda trial, about=about: about in _claims(trial))
            key = f"{about}: {least}"
            if key not in failed:
                said = _claims(least).get(about, said)
                print(f"FALSE {said}\n    python -m judge --program '{least}'\n    drawn as {program}", flush=True)
            failed[key] += 1
    print(f"\n{sum(judged.values())} programs {dict(judged)}, {sum(void.values())} of them fail without us")
    print(f"torch {torch.__version__}, inferspan from {inferspan.__file__}, {time.monotonic() - began:.0f} s")
    for reason, number in void.most_common(8):
        print(f"    {number} x {reason[:160]}")
    print("claims: " + ", ".join(f"{name} {tally[name]}" for name in sorted(tally)))
    for key, number in failed.most_common():
        print(f"FALSE {number} x {key}")
    gc.unfreeze()
    print(f"{len(failed)} kinds of false claims" if failed else "no false claim")
    return bool(failed)


def _claims(program: Program, tally: Counter[str] | None = None, void: Counter[str] | None = None) -> dict[str, str]:
    """False claims by what they are about."""
    try:
        return {claim.about: str(claim) for claim in judge(program, tally)}
    except Void as reason:
        if void is not None:
            void[f"{program.family.name} {reason}"] += 1
        return {}
    except Exception as error:  # noqa: BLE001 - a fault of ours that conftest would raise too
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {f"{type(error).__name__} in {os.path.basename(place.filename)}": f"{error}"[:300]}


if __name__ == "__main__":
    sys.exit(main())
