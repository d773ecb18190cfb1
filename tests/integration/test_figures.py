"""FLOPs and the KV cache on the spans, beside what torch counts and what the cache really holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import pipeline

import inferspan
from inferspan import semconv
from support import tiny
from support.recorder import Recorder

IDS = torch.tensor([[10, 20, 30, 40, 50], [50, 60, 70, 80, 90]])


def counted(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def flops(recorder: Recorder, name: str) -> Any:
    return recorder.attributes(name, without=set()).get(semconv.FLOPS)


def eager(model: Any) -> Any:
    model.set_attn_implementation("eager")
    return model


def test_a_model_called_directly(recorder: Recorder) -> None:
    model = eager(tiny.causal_lm())
    theirs = counted(lambda: model(IDS))
    assert flops(recorder, "forward") == pytest.approx(theirs, rel=0.01)
    found = recorder.attributes("forward", without=set())
    assert found[semconv.FLOPS_METHOD] == "linear_inventory"
    assert semconv.FLOPS_EXACT not in found
    assert sum(point.value for point in recorder.points(semconv.FLOPS_DONE)) == flops(recorder, "forward")


def test_generate_and_its_parts(recorder: Recorder) -> None:
    model = eager(tiny.causal_lm())
    theirs = counted(lambda: model.generate(IDS, max_new_tokens=6, do_sample=False, num_beams=3, eos_token_id=None))
    assert flops(recorder, "text_completion") == pytest.approx(theirs, rel=0.01)
    assert flops(recorder, "prefill") + flops(recorder, "decode") == flops(recorder, "forward")
    by_phase = {point.attributes[semconv.PHASE_NAME]: point.value for point in recorder.points(semconv.FLOPS_DONE)}
    assert by_phase == {name: flops(recorder, name) for name in ("forward", "prefill", "decode")}


def test_generate_that_goes_on_from_a_cache(recorder: Recorder) -> None:
    model = eager(tiny.causal_lm())
    first = model.generate(
        IDS, max_new_tokens=3, do_sample=False, eos_token_id=None, return_dict_in_generate=True, use_cache=True
    )
    recorder.clear()
    theirs = counted(
        lambda: model.generate(
            first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False, eos_token_id=None
        )
    )
    assert flops(recorder, "text_completion") == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("where", ["call", "configuration", "model"])
@pytest.mark.parametrize(
    ("setting", "exact"),
    [
        pytest.param({"use_cache": False}, None, id="no-cache"),
        pytest.param({"cache_implementation": "static"}, False, id="static-cache"),
        pytest.param({"cache_implementation": "dynamic"}, None, id="growing-cache"),
        pytest.param({"num_beams": 2, "num_return_sequences": 2}, None, id="beams"),
    ],
)
def test_generate_counts_by_the_settings_in_force(
    where: str, setting: dict[str, Any], exact: bool | None, recorder: Recorder
) -> None:
    model = eager(tiny.causal_lm())
    kwargs: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **setting}
    model.generation_config.eos_token_id = None
    if where == "configuration":
        kwargs = {"generation_config": transformers.GenerationConfig(**kwargs)}
    elif where == "model":
        for name in setting:
            setattr(model.generation_config, name, kwargs.pop(name))
    theirs = counted(lambda: model.generate(IDS, **kwargs))
    if exact is None:
        assert flops(recorder, "text_completion") == pytest.approx(theirs, rel=0.01)
    assert recorder.attributes("text_completion", without=set()).get(semconv.FLOPS_EXACT) is exact


def test_kv_cache_is_what_the_cache_holds(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    out = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None, return_dict_in_generate=True)
    cache = out.past_key_values
    if hasattr(cache, "layers"):
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    else:
        tensors = [*cache.key_cache, *cache.value_cache]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert recorder.attributes("text_completion", without=set())[semconv.KV_CACHE_SIZE] == held
    assert [point.sum for point in recorder.points(semconv.KV_CACHE_SIZES)] == [held]


def test_a_pipeline_counts_its_models_calls_once_each(recorder: Recorder) -> None:
    pipe = pipeline(
        "text-classification", model=tiny.classifier(attn_implementation="eager"), tokenizer=tiny.word_tokenizer()
    )
    theirs = counted(lambda: pipe(["hello world", "how do you do"], batch_size=2))
    assert flops(recorder, "text-classification") == pytest.approx(theirs, rel=0.01)


def test_a_block_counts_what_runs_in_it(recorder: Recorder) -> None:
    model = tiny.classifier(attn_implementation="eager")

    def two() -> None:
        with inferspan.inference("two"):
            model(IDS)
            model(IDS[:1])

    assert counted(two) == pytest.approx(flops(recorder, "two"), rel=0.01)


def test_children_that_are_left_out_are_in_the_sum(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(children_max=0)
    model = eager(tiny.causal_lm())
    theirs = counted(lambda: model.generate(IDS, max_new_tokens=4, do_sample=False, eos_token_id=None))
    assert flops(bare_recorder, "text_completion") == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [{"prompt_lookup_num_tokens": 2}, {"assistant_model": "draft"}],
    ids=["prompt look-up", "draft model"],
)
def test_what_a_draft_proposed_is_not_guessed(recorder: Recorder, options: dict[str, Any]) -> None:
    if "assistant_model" in options:
        options = {"assistant_model": tiny.draft_lm()}
    tiny.causal_lm().generate(IDS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None, **options)
    assert flops(recorder, "text_completion") is None


def test_a_cache_of_fixed_size_is_not_exact(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    model.generation_config.cache_implementation = "static"
    model.generation_config.disable_compile = True
    model.generate(IDS, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert recorder.attributes("text_completion", without=set())[semconv.FLOPS_EXACT] is False


def test_a_model_without_parameters_has_no_figures_and_no_fault(recorder: Recorder) -> None:
    class Empty(transformers.PreTrainedModel):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    Empty(transformers.PretrainedConfig()).eval()(input_ids=IDS)
    assert flops(recorder, "forward") is None
