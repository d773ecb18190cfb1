"""``from_pretrained``: one ``load`` span with the model's own facts, and what the first inference tells of it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from opentelemetry import trace

import inferspan
from support import tiny
from support.recorder import MODEL_FACTS, Recorder

IDS = torch.tensor([[10, 20, 30, 40]])

GENERATION = ("forward", "prefill", "decode")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model in a folder whose path is nobody's business."""
    path = tmp_path / "secret project" / "storyteller"
    tiny.causal_lm().save_pretrained(path)
    return str(path)


LOADED = {
    "gen_ai.operation.name": "load",
    "gen_ai.provider.name": "huggingface",
    "gen_ai.request.model": "storyteller",
    "inferspan.device": "cpu",
    "inferspan.model.attention": "sdpa",
    "inferspan.model.class": "LlamaForCausalLM",
    "inferspan.model.dtype": "float32",
    "inferspan.model.parameters": 44192,
    "inferspan.model.type": "llama",
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
}


def told(recorder: Recorder) -> str:
    """Everything that left the process, as text."""
    spans = "".join(span.to_json() for span in recorder.spans())
    data = recorder.reader.get_metrics_data()
    return spans + (data.to_json() if data else "")


def test_load_from_a_folder_gives_one_span_with_the_models_facts(folder: str, recorder: Recorder) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    assert recorder.trees() == ["load storyteller"]
    assert recorder.attributes("load") == {**LOADED, "inferspan.model.size": model.get_memory_footprint()}
    points = recorder.points("inferspan.load.duration")
    assert [(point.count, dict(point.attributes)) for point in points] == [
        (1, {"gen_ai.provider.name": "huggingface", "gen_ai.request.model": "storyteller"})
    ]
    span = recorder.span("load")
    assert points[0].sum == pytest.approx((span.end_time - span.start_time) * 1e-9)
    assert recorder.points("gen_ai.client.operation.duration") == []
    assert "secret project" not in told(recorder)


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        pytest.param(transformers.AutoModelForCausalLM, {}, id="auto"),
        pytest.param(transformers.LlamaForCausalLM, {"dtype": torch.bfloat16}, id="dtype"),
        pytest.param(transformers.LlamaForCausalLM, {"attn_implementation": "eager"}, id="attention"),
    ],
)
def test_load_tells_what_was_asked_for(cls: Any, kwargs: dict[str, Any], folder: str, recorder: Recorder) -> None:
    model = cls.from_pretrained(folder, **kwargs)
    expected = {
        **LOADED,
        "inferspan.model.attention": kwargs.get("attn_implementation", "sdpa"),
        "inferspan.model.dtype": "bfloat16" if "dtype" in kwargs else "float32",
        "inferspan.model.size": model.get_memory_footprint(),
    }
    assert recorder.trees() == ["load storyteller"]
    assert recorder.attributes("load") == expected


def test_load_by_keyword_and_path_object_gives_the_same_name(folder: str, recorder: Recorder) -> None:
    transformers.LlamaForCausalLM.from_pretrained(pretrained_model_name_or_path=Path(folder))
    assert recorder.trees() == ["load storyteller"]


def test_load_with_names_as_classes_hides_even_the_folder(folder: str, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(local_model_name="class")
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    model.generate(IDS, max_new_tokens=2)
    assert bare_recorder.trees() == ["load LlamaForCausalLM", ("text_completion LlamaForCausalLM", GENERATION)]
    assert "storyteller" not in told(bare_recorder)


def test_load_revision_asked_for_is_told(folder: str, recorder: Recorder) -> None:
    transformers.LlamaForCausalLM.from_pretrained(folder, revision="v2.1")
    assert recorder.attributes("load")["inferspan.model.revision"] == "v2.1"


def test_load_of_a_pipeline_is_one_span(folder: str, recorder: Recorder) -> None:
    pipe = transformers.pipeline("text-generation", model=folder, tokenizer=tiny.text_tokenizer())
    pipe("A cat sat", max_new_tokens=2, do_sample=False)
    assert recorder.trees() == [
        "load storyteller",
        ("text_completion storyteller", "tokenize", GENERATION, "detokenize"),
    ]
    assert recorder.attributes("text_completion")["inferspan.load.time"] is ...


def test_load_inside_a_span_is_its_child(folder: str, recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("startup"):
        transformers.LlamaForCausalLM.from_pretrained(folder)
    assert recorder.trees() == [("startup", "load storyteller")]


# -- cold and warm -------------------------------------------------------------------------------------------------


def test_load_then_first_inference_is_cold_and_the_second_warm(folder: str, recorder: Recorder) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    load = recorder.span("load")
    recorder.clear()
    model.generate(IDS, max_new_tokens=2)
    first = recorder.span("text_completion").attributes
    assert not MODEL_FACTS & set(first)
    assert first["inferspan.cold"] is True
    assert first["gen_ai.request.model"] == "storyteller"
    assert first["inferspan.load.time"] == pytest.approx((load.end_time - load.start_time) * 1e-9, abs=0.1)
    recorder.clear()
    model.generate(IDS, max_new_tokens=2)
    second = recorder.span("text_completion").attributes
    assert second["inferspan.cold"] is False
    assert not {"inferspan.load.time", *MODEL_FACTS} & set(second)
    assert recorder.counts("inferspan.inference.cold_starts", "gen_ai.request.model") == {"storyteller": 1}


def test_load_then_forward_is_cold_once(folder: str, recorder: Recorder) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    recorder.clear()
    for _ in range(2):
        model(IDS)
    assert [span.attributes["inferspan.cold"] for span in recorder.spans()] == [True, False]


def test_load_again_is_a_new_cold_start(folder: str, recorder: Recorder) -> None:
    for _ in range(2):
        model = transformers.LlamaForCausalLM.from_pretrained(folder)
        model(IDS)
    assert recorder.trees() == ["load storyteller", "forward", "load storyteller", "forward"]
    assert recorder.counts("inferspan.inference.cold_starts", "gen_ai.request.model") == {"storyteller": 2}


def test_load_then_gone_keeps_nothing_alive(folder: str, recorder: Recorder) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    model.generate(IDS, max_new_tokens=2)
    model(IDS)
    gone = weakref.ref(model)
    weight = weakref.ref(model.lm_head.weight)
    del model
    gc.collect()
    assert (gone(), weight()) == (None, None)


def test_load_failed_inference_keeps_nothing_alive(folder: str, recorder: Recorder) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with pytest.raises(IndexError):
        model(torch.tensor([[100_000]]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# -- the result and errors -------------------------------------------------------------------------------------------


def test_load_gives_the_same_model(folder: str, bare_recorder: Recorder) -> None:
    def load() -> Any:
        torch.manual_seed(7)
        model = transformers.LlamaForCausalLM.from_pretrained(folder)
        state = {name: value.tolist() for name, value in model.state_dict().items()}
        return type(model), model.training, vars(model).keys(), state, torch.get_rng_state().tolist()

    plain = load()
    bare_recorder.instrument()
    assert load() == plain


def test_load_with_loading_info_gives_the_same_tuple(folder: str, bare_recorder: Recorder) -> None:
    plain = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    bare_recorder.instrument()
    result = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert (type(result), type(result[0]), result[1]) == (tuple, type(plain[0]), plain[1])
    assert bare_recorder.attributes("load")["inferspan.model.class"] == "LlamaForCausalLM"
    result[0](IDS)
    assert bare_recorder.attributes("forward")["inferspan.load.time"] is ...


@pytest.mark.parametrize("part", [pytest.param("", id="no-folder"), pytest.param("config.json", id="no-weights")])
def test_load_that_fails_leaks_no_path(part: str, folder: str, tmp_path: Path, bare_recorder: Recorder) -> None:
    source = tmp_path / "secret project" / "missing"
    if part:
        source.mkdir()
        (source / part).write_text((Path(folder) / part).read_text())

    def load() -> BaseException:
        with pytest.raises((OSError, ValueError), match="missing") as raised:
            transformers.LlamaForCausalLM.from_pretrained(str(source))
        return raised.value

    plain = load()
    bare_recorder.instrument()
    error = load()
    kind = "OSError" if type(plain) is OSError else "huggingface_hub.errors.HFValidationError"  # 4.57, no folder
    assert (type(error), str(error)) == (type(plain), str(plain))
    assert bare_recorder.trees() == ["load missing"]
    assert bare_recorder.attributes("load") == {
        "error.type": kind,
        "gen_ai.operation.name": "load",
        "gen_ai.provider.name": "huggingface",
        "gen_ai.request.model": "missing",
        "inferspan.process.cpu_time": ...,
        "inferspan.process.memory_before": ...,
        "inferspan.process.memory_usage": ...,
    }
    span = bare_recorder.span("load")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description is None
    assert [set(event.attributes) for event in span.events] == [{"exception.type", "exception.stacktrace"}]
    assert [point.attributes["error.type"] for point in bare_recorder.points("inferspan.load.duration")] == [kind]
    assert "secret project" not in told(bare_recorder)
    assert str(tmp_path) not in told(bare_recorder)


def test_load_put_back_is_the_original(bare_recorder: Recorder) -> None:
    original = vars(transformers.PreTrainedModel)["from_pretrained"]
    bare_recorder.instrument()
    assert vars(transformers.PreTrainedModel)["from_pretrained"] is not original
    inferspan.uninstrument()
    assert vars(transformers.PreTrainedModel)["from_pretrained"] is original
