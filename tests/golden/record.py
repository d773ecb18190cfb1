"""Records the golden run anew, or checks it:

    PYTHONPATH=src:tests python -m golden.record [--check] [--shuffle SEED] [--only SCENARIO] [group ...]

The folder is chosen by the installed dependencies (``constraints/newest.txt``, ``constraints/oldest.txt``).
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from time import perf_counter

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from golden import groups
from golden.compare import difference
from golden.stage import quick_collections, run


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", help="by default all")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="groups and scenarios in another order")
    parser.add_argument("--only", metavar="SCENARIO", help="print the text of one scenario of the group")
    wanted = parser.parse_args()
    with quick_collections():
        if wanted.only:
            print(run(wanted.only, groups.load(wanted.groups[0])[wanted.only]))
            return 0
        return _all(wanted.groups or list(groups.NAMES), wanted.check, wanted.shuffle)


def _all(names: list[str], check: bool, seed: int | None) -> int:
    chance = None if seed is None else random.Random(seed)
    if chance is not None:
        chance.shuffle(names)
    differs = False
    for name in names:
        began = perf_counter()
        found = groups.text(name, chance)
        path = groups.recorded(name)
        if check:
            told = difference(path.read_text(), found)
            differs = differs or bool(told)
            print(told, end="\n" if told else "")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found)
        print(f"{name}: {len(groups.load(name))} scenarios, {perf_counter() - began:.1f} s", flush=True)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
