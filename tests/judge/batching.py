"""Programs that use continuous batching: each request must say what was computed for it."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import torch
import transformers

from judge.observe import Case, Seen, Truth
from judge.program import Choices, Family
from support import tiny

V4 = transformers.__version__.startswith("4.")

AXES: dict[str, tuple[Any, ...]] = {
    "how": ("batch", "manager", "streamed"),
    "requests": (2, 1, 5),
    "limit": (5, 1, 2, 9),
    "eos": (False, True),
    "blocks": (32,) if V4 else (32, 4),  # 4.57 fails where the cache is full
    "sample": (False, True),
    "where": ("direct", "span", "thread"),
    "seed": tuple(range(8)),
}


def make(c: Choices) -> Case:
    """The program, ready to run."""
    random = Random(c["seed"])
    model = tiny.causal_lm()
    if V4:
        from transformers.generation.continuous_batching import cache

        model.set_attn_implementation("sdpa_paged")
        # 4.57 cannot read how much memory a CPU has
        cache.get_device_and_memory_breakdown = lambda: (torch.device("cpu"), 2**30, 0, 0)
    lengths = random.sample(range(2, 30), c["requests"])
    prompts = [[random.randint(40, 290) for _ in range(length)] for length in lengths]
    sizes = {"num_blocks": c["blocks"], "max_batch_tokens": 64}
    end = random.sample(range(300), 60) if c["eos"] and not V4 else [2]
    settings = transformers.GenerationConfig(
        do_sample=c["sample"], eos_token_id=end if not V4 else end[0], pad_token_id=0, **(sizes if V4 else {})
    )
    options: dict[str, Any] = {"generation_config": settings}
    if not V4:
        options["continuous_batching_config"] = transformers.ContinuousBatchingConfig(page_size=256, **sizes)

    def run() -> Any:
        if c["how"] != "batch":
            return _managed(c, model, prompts, options)
        return model.generate_batch(prompts, progress_bar=False, max_new_tokens=c["limit"], **options)

    return Case(run, partial(_truth, c, prompts, set(end)), same=partial(_tokens, c))


def _managed(c: Choices, model: Any, prompts: list[list[int]], options: dict[str, Any]) -> Any:
    """The same requests, handed one by one to a manager."""
    streams = {"streaming": True} if c["how"] == "streamed" else {}
    manager = model.init_continuous_batching(**options, **(streams if V4 else {}))
    manager.start()
    found: dict[str, Any] = {}
    try:
        for prompt in prompts:
            manager.add_request(prompt, max_new_tokens=c["limit"], **({} if V4 else streams))
        while len(found) < len(prompts):
            output = manager.get_result(timeout=60)
            if output is not None and output.status.name in ("FINISHED", "FAILED"):
                found[output.request_id] = output
    finally:
        manager.stop(block=True)
    return found


def _tokens(c: Choices, result: Any) -> Any:
    return None if c["sample"] else sorted(output.generated_tokens for output in result.values())


def _truth(c: Choices, prompts: list[list[int]], ends: set[int], result: Any, seen: Seen) -> list[Truth]:
    by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in result.values()}
    found: list[Truth] = []
    for prompt in sorted(prompts, key=len):
        written = by_prompt[tuple(prompt)]
        found.append(
            Truth(
                rows=1,
                length=len(prompt),
                input_tokens=len(prompt),
                positions=len(prompt),
                output_tokens=None if c["sample"] else len(written),
                finish=None if c["sample"] else [{"stop"} if written[-1] in ends else {"length"}],
                calls={"queue": 1, "forward": 1},
                settings={"gen_ai.request.max_tokens": c["limit"]},
                unknown=frozenset({"output_tokens", "finish"} if c["sample"] else ()),
            )
        )
    return found


FAMILY = Family("batching", AXES, lambda c: True, make)
