"""True token counts of ``generate()``: padding is not read, and what stands behind a row's end is not generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria

from support import tiny
from support.recorder import Recorder

PAD, EOS, OTHER_END = 0, 2, 3
PADDED = torch.tensor([[PAD, PAD, 10, 20], [30, 40, 50, 60]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

READ = ("gen_ai.usage.input_tokens", "inferspan.padding.ratio", "inferspan.usage.input_tokens.exact")
WRITTEN = (
    "gen_ai.usage.output_tokens",
    "gen_ai.response.finish_reasons",
    "inferspan.usage.output_tokens.exact",
)


class Script(LogitsProcessor):
    """Has each row generate what is written for it."""

    def __init__(self, *rows: list[int], prompt: int = 4) -> None:
        self.rows, self.prompt = rows, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt
        written = torch.full_like(scores, -torch.inf)
        for row in range(len(scores)):
            written[row, self.rows[row][min(step, len(self.rows[row]) - 1)]] = 0.0
        return written


class Until(StoppingCriteria):
    """Ends a row with the token 99."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, -1] == 99


def generate(model: Any, *rows: list[int], prompt: int = 4, inputs: torch.Tensor = PADDED, **kwargs: Any) -> Any:
    script = LogitsProcessorList([Script(*rows, prompt=prompt)])
    return model.generate(inputs, logits_processor=script, **kwargs)


def facts(recorder: Recorder, names: tuple[str, ...]) -> dict[str, Any]:
    found = recorder.attributes("text_completion")
    return {name: found[name] for name in names if name in found}


# -- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param(
            {"attention_mask": MASK},
            {"gen_ai.usage.input_tokens": 6, "inferspan.padding.ratio": 0.25},
            id="attention-mask",
        ),
        pytest.param(
            {}, {"gen_ai.usage.input_tokens": 6, "inferspan.padding.ratio": 0.25}, id="padding-id-of-the-model"
        ),
        pytest.param(
            {"pad_token_id": 30},
            {"gen_ai.usage.input_tokens": 7, "inferspan.padding.ratio": 0.125},
            id="padding-id-of-the-call",
        ),
        pytest.param(
            {"generation_config": transformers.GenerationConfig(pad_token_id=30, eos_token_id=EOS, max_new_tokens=3)},
            {"gen_ai.usage.input_tokens": 7, "inferspan.padding.ratio": 0.125},
            id="padding-id-of-the-configuration",
        ),
        pytest.param({"pad_token_id": EOS}, {"gen_ai.usage.input_tokens": 8}, id="padding-id-that-ends-too"),
        pytest.param(
            {"attention_mask": torch.ones_like(MASK)}, {"gen_ai.usage.input_tokens": 8}, id="mask-without-padding"
        ),
    ],
)
def test_generate_padded_batch_counts_what_is_read(
    kwargs: dict[str, Any], expected: dict[str, Any], recorder: Recorder
) -> None:
    generate(tiny.causal_lm(), [7], [8], **{"max_new_tokens": 3, **kwargs})
    assert facts(recorder, READ) == expected


@pytest.mark.parametrize(
    ("call", "tokens"),
    [
        pytest.param(lambda m, c: m.generate(PADDED, c), 7, id="configuration-positional"),
        pytest.param(lambda m, c: m.generate(input_ids=PADDED, generation_config=c), 7, id="by-name"),
        pytest.param(
            lambda m, c: m.generate(inputs=PADDED, generation_config=c, pad_token_id=PAD), 6, id="and-the-call"
        ),
        pytest.param(
            lambda m, c: m.generate(PADDED, c, pad_token_id=torch.tensor(PAD)), 6, id="padding-id-in-a-tensor"
        ),
        pytest.param(lambda m, c: m.generate(PADDED, c, eos_token_id=torch.tensor([30, 2])), 8, id="ends-in-a-tensor"),
        pytest.param(
            lambda m, c: m.generate(inputs_embeds=m.get_input_embeddings()(PADDED), attention_mask=MASK),
            6,
            id="masked-embeddings",
        ),
    ],
)
def test_generate_given_its_input_in_any_way_counts_what_is_read(
    call: Callable[[Any, Any], Any], tokens: int, recorder: Recorder
) -> None:
    config = transformers.GenerationConfig(pad_token_id=30, eos_token_id=EOS, max_new_tokens=3)
    with torch.no_grad():
        call(tiny.causal_lm(), config)
    ratio = {"inferspan.padding.ratio": 1 - tokens / 8} if tokens < 8 else {}
    assert facts(recorder, READ) == {"gen_ai.usage.input_tokens": tokens, **ratio}


def test_generate_with_a_prefix_in_the_cache_tells_what_is_not_computed_again(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    with torch.no_grad():
        cache = model(input_ids=PADDED[:, :3], attention_mask=MASK[:, :3], use_cache=True).past_key_values
    recorder.clear()
    model.generate(PADDED, attention_mask=MASK, past_key_values=cache, max_new_tokens=3)
    assert facts(recorder, (*READ, "gen_ai.usage.cache_read.input_tokens")) == {
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "inferspan.padding.ratio": 0.25,
    }


def test_generate_padding_id_set_after_loading_is_the_one_in_force(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    generate(model, [7], [8], max_new_tokens=3)
    model.generation_config.pad_token_id = 30
    recorder.clear()
    generate(model, [7], [8], max_new_tokens=3)
    assert facts(recorder, READ) == {"gen_ai.usage.input_tokens": 7, "inferspan.padding.ratio": 0.125}


def test_generate_encoder_decoder_counts_what_the_encoder_reads(recorder: Recorder) -> None:
    inputs = torch.tensor([[10, 20, EOS, PAD], [30, 40, 50, EOS]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    generate(tiny.seq2seq_lm(), [7], [8], inputs=inputs, prompt=1, attention_mask=mask, max_new_tokens=3)
    assert facts(recorder, READ) == {"gen_ai.usage.input_tokens": 7, "inferspan.padding.ratio": 0.125}


# -- what is generated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "kwargs", "tokens", "reasons", "steps"),
    [
        pytest.param(([7], [8]), {}, 12, ("length", "length"), 5, id="none-ends"),
        pytest.param(([7, EOS], [8]), {}, 8, ("stop", "length"), 5, id="one-ends-early"),
        pytest.param(([7, EOS], [8, 8, 8, EOS]), {}, 6, ("stop", "stop"), 3, id="both-end-early"),
        pytest.param(([EOS], [EOS]), {}, 2, ("stop", "stop"), 0, id="both-end-at-once"),
        pytest.param(([7, EOS], [8]), {"pad_token_id": EOS}, 8, ("stop", "length"), 5, id="padded-with-the-end"),
        pytest.param(([7] * 5 + [EOS], [8]), {}, 12, ("stop", "length"), 5, id="ends-at-the-limit"),
        pytest.param(
            ([7, OTHER_END], [8, 8, EOS]), {"eos_token_id": [EOS, OTHER_END]}, 5, ("stop", "stop"), 2, id="two-ends"
        ),
        pytest.param(
            ([7, OTHER_END], [8, EOS]),
            {"eos_token_id": OTHER_END},
            8,
            ("stop", "length"),
            5,
            id="end-of-the-call",
        ),
        pytest.param(
            ([7, OTHER_END], [8, EOS]),
            {"generation_config": transformers.GenerationConfig(eos_token_id=OTHER_END, pad_token_id=PAD)},
            8,
            ("stop", "length"),
            5,
            id="end-of-the-configuration",
        ),
        pytest.param(
            ([7, 99], [8, 8, 8, 99]),
            {"stopping_criteria": StoppingCriteriaList([Until()])},
            6,
            ("stop", "stop"),
            3,
            id="both-end-by-a-criterion",
        ),
        pytest.param(
            ([7, 99], [8]),
            {"stopping_criteria": StoppingCriteriaList([Until()])},
            8,
            ("stop", "length"),
            5,
            id="one-ends-by-a-criterion",
        ),
    ],
)
def test_generate_batch_counts_each_row_to_its_end(
    rows: tuple[list[int], ...],
    kwargs: dict[str, Any],
    tokens: int,
    reasons: tuple[str, ...],
    steps: int,
    recorder: Recorder,
) -> None:
    generate(tiny.causal_lm(), *rows, max_new_tokens=6, **kwargs)
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": tokens,
        "gen_ai.response.finish_reasons": reasons,
    }
    if steps:
        assert recorder.attributes("decode") == {"inferspan.decode.steps": steps}
    else:
        assert recorder.trees() == [("text_completion LlamaForCausalLM", ("forward", "prefill"))]


STOPPING = {"stopping_criteria": StoppingCriteriaList([Until()])}


@pytest.mark.parametrize(
    ("rows", "kwargs", "tokens", "reasons"),
    [
        pytest.param(
            ([7, 99], [8]), {"pad_token_id": EOS, **STOPPING}, 8, ("stop", "length"), id="padded-with-the-end"
        ),
        pytest.param(
            ([7, EOS], [8]), {"pad_token_id": EOS, **STOPPING}, 8, ("stop", "length"), id="ends-and-padded-with-the-end"
        ),
        pytest.param(
            ([99], [8, 8, 99]), {"pad_token_id": None, **STOPPING}, 4, ("stop", "stop"), id="padded-with-the-first-end"
        ),
        pytest.param(([7, PAD], [8]), STOPPING, 12, ("length", "length"), id="generates-the-padding-id"),
        pytest.param(
            ([7, 99], [8]), {"eos_token_id": None, **STOPPING}, 12, ("stop", "length"), id="goes-on-without-an-end"
        ),
        pytest.param(([7, EOS], [8]), {"eos_token_id": None}, 12, ("length", "length"), id="end-taken-back"),
        pytest.param(([7, EOS], [8]), {"eos_token_id": torch.tensor([EOS, 9])}, 8, ("stop", "length"), id="tensor"),
        pytest.param(([7, EOS], [8]), {"eos_token_id": torch.tensor(EOS)}, 8, ("stop", "length"), id="tensor-of-one"),
        pytest.param(([7], [8]), {"max_time": 0.0}, 2, ("length", "length"), id="time"),
        pytest.param(([7], [EOS]), {"max_time": 0.0}, 2, ("length", "stop"), id="time-and-an-end"),
        pytest.param(
            ([7], [8]),
            {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(6)])},
            4,
            ("length", "length"),
            id="length-of-the-caller's-criterion",
        ),
        pytest.param(
            ([7, 99], [8, EOS]),
            {"stopping_criteria": StoppingCriteriaList([EosTokenCriteria(99)])},
            8,
            ("stop", "length"),
            id="end-of-the-caller's-criterion",
        ),
        pytest.param(
            ([7, 99], [8], [8, 8, EOS], [99]),
            {"num_return_sequences": 2, "do_sample": True, **STOPPING},
            12,
            ("stop", "length", "stop", "stop"),
            id="several-sequences",
        ),
    ],
)
def test_generate_row_that_ends_in_any_way_is_counted_to_there(
    rows: tuple[list[int], ...], kwargs: dict[str, Any], tokens: int, reasons: tuple[str, ...], recorder: Recorder
) -> None:
    generate(tiny.causal_lm(), *rows, **{"max_new_tokens": 6, **kwargs})
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": tokens,
        "gen_ai.response.finish_reasons": reasons,
    }


@pytest.mark.parametrize("where", ["configuration", "model", "call"])
@pytest.mark.parametrize("pad_token_id", [PAD, EOS])
def test_generate_stop_strings_from_anywhere_end_each_row(where: str, pad_token_id: int, recorder: Recorder) -> None:
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    stop = tokenizer.encode("cat", add_special_tokens=False)
    settings = {"max_new_tokens": 8, "stop_strings": ["cat"], "pad_token_id": pad_token_id, "eos_token_id": EOS}
    kwargs: dict[str, Any] = settings
    if where == "configuration":
        kwargs = {"generation_config": transformers.GenerationConfig(**settings)}
    elif where == "model":
        kwargs = {}
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
    generate(model, [7, *stop], [8], tokenizer=tokenizer, **kwargs)
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": 1 + len(stop) + 8,
        "gen_ai.response.finish_reasons": ("stop", "length"),
    }


@pytest.mark.parametrize(
    ("kwargs", "tokens", "reason"),
    [
        pytest.param({"max_length": 10}, 6, "length", id="max-length"),
        pytest.param({"max_length": 10, "eos_token_id": 7}, 1, "stop", id="max-length-not-reached"),
        pytest.param(
            {"max_length": 10, "stopping_criteria": StoppingCriteriaList([Until()])},
            3,
            "stop",
            id="criterion-before-max-length",
        ),
        pytest.param({"generation_config": transformers.GenerationConfig(max_new_tokens=4)}, 4, "length", id="config"),
        pytest.param({"max_length": 6, "max_new_tokens": 4}, 4, "length", id="both"),
        pytest.param(
            {"generation_config": transformers.GenerationConfig(max_length=10), "eos_token_id": 99},
            3,
            "stop",
            id="length-of-the-configuration",
        ),
    ],
)
def test_generate_one_row_says_why_it_ended(
    kwargs: dict[str, Any], tokens: int, reason: str, recorder: Recorder
) -> None:
    generate(tiny.causal_lm(), [7, 7, 99, 7], inputs=PADDED[1:], **kwargs)
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": tokens,
        "gen_ai.response.finish_reasons": (reason,),
    }


def test_generate_end_id_set_after_loading_is_the_one_in_force(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    generate(model, [7, OTHER_END], [8, EOS], max_new_tokens=6)
    model.generation_config.eos_token_id = OTHER_END
    recorder.clear()
    generate(model, [7, OTHER_END], [8, EOS], max_new_tokens=6)
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ("stop", "length"),
    }


def test_generate_encoder_decoder_counts_each_row_to_its_end(recorder: Recorder) -> None:
    generate(tiny.seq2seq_lm(), [7, EOS], [8], prompt=1, max_new_tokens=6)
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ("stop", "length"),
    }


def test_generate_beams_that_end_are_counted_to_their_end(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    ends = [
        int(model.generate(row[None], max_new_tokens=6)[0, index]) for row, index in zip(PADDED, (5, 8), strict=True)
    ]
    recorder.clear()
    result = model.generate(PADDED, attention_mask=MASK, max_new_tokens=6, num_beams=3, eos_token_id=ends)
    found = recorder.attributes("text_completion")
    lengths = [until(row, ends) for row in result[:, 4:].tolist()]
    assert found["gen_ai.usage.output_tokens"] == sum(lengths)
    assert len(found["gen_ai.response.finish_reasons"]) == 2


def until(row: list[int], ends: list[int]) -> int:
    return next((index + 1 for index, token in enumerate(row) if token in ends), len(row))


def test_generate_stop_string_ends_each_row(recorder: Recorder) -> None:
    tokenizer = tiny.text_tokenizer()
    stop = tokenizer.encode("cat", add_special_tokens=False)
    rows = ([7, *stop], [8])
    generate(tiny.causal_lm(), *rows, max_new_tokens=8, stop_strings="cat", tokenizer=tokenizer)
    assert facts(recorder, (*WRITTEN, "gen_ai.request.stop_sequences")) == {
        "gen_ai.usage.output_tokens": 1 + len(stop) + 8,
        "gen_ai.response.finish_reasons": ("stop", "length"),
    }


@pytest.mark.parametrize(
    "stop_strings",
    [pytest.param("cat", id="one"), pytest.param(["cat"], id="list")],
)
def test_generate_stop_strings_are_content(stop_strings: Any, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer = tiny.text_tokenizer()
    tiny.causal_lm().generate(PADDED, max_new_tokens=2, stop_strings=stop_strings, tokenizer=tokenizer)
    assert facts(bare_recorder, ("gen_ai.request.stop_sequences",)) == {"gen_ai.request.stop_sequences": ("cat",)}


# -- what was asked for ----------------------------------------------------------------------------------------------

REQUESTED = (
    "gen_ai.request.choice.count",
    "gen_ai.request.max_tokens",
    "gen_ai.request.temperature",
    "inferspan.request.do_sample",
)
SAMPLING = {"max_new_tokens": 3, "temperature": 0.7, "do_sample": True, "num_return_sequences": 2}
ASKED = dict(zip(REQUESTED, (2, 3, 0.7, True), strict=True))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(lambda config: {"generation_config": config}, ASKED, id="configuration"),
        pytest.param(lambda config: SAMPLING, ASKED, id="call"),
        pytest.param(
            lambda config: {"generation_config": config, "temperature": 0.5, "num_return_sequences": 1},
            {name: value for name, value in {**ASKED, REQUESTED[2]: 0.5}.items() if name != REQUESTED[0]},
            id="call-before-configuration",
        ),
        pytest.param(
            lambda config: {"generation_config": config, "temperature": None},
            {name: value for name, value in ASKED.items() if name != REQUESTED[2]},
            id="taken-back",
        ),
        pytest.param(lambda config: {}, {}, id="nothing"),
    ],
)
def test_generate_request_shows_what_was_set_for_it(
    given: Callable[[Any], dict[str, Any]], expected: dict[str, Any], recorder: Recorder
) -> None:
    model = tiny.causal_lm()
    model.generation_config.max_length = 8
    model.generate(PADDED, attention_mask=MASK, **given(transformers.GenerationConfig(**SAMPLING)))
    assert facts(recorder, REQUESTED) == expected


# -- a generate of the class's own -----------------------------------------------------------------------------------


def override(base: type) -> type:
    class WithPrefix(base):  # type: ignore[misc]
        """Puts two tokens before every prompt."""

        def generate(self, inputs: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            prefix = torch.tensor([[5, 6]]).expand(len(inputs), 2)
            return super().generate(torch.cat([prefix, inputs], dim=1), **kwargs)

    return WithPrefix


def test_generate_overridden_counts_what_the_general_one_returns(recorder: Recorder) -> None:
    model = tiny.seeded(lambda: override(transformers.LlamaForCausalLM)(tiny.llama_config()))
    generate(model, [7, EOS], [8], prompt=6, max_new_tokens=6)
    assert recorder.trees() == [("text_completion WithPrefix", ("forward", "prefill", "decode"))]
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ("stop", "length"),
    }


class Wrapper(transformers.PreTrainedModel):
    """Has a language model inside, and a ``generate`` that ends in its."""

    config_class = transformers.LlamaConfig

    def __init__(self, config: transformers.LlamaConfig, inner: Callable[..., Any]) -> None:
        super().__init__(config)
        self.language_model = inner(config)

    def generate(self, images: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        embeddings = self.language_model.get_input_embeddings()(PADDED)
        return self.language_model.generate(inputs_embeds=embeddings, **kwargs)


def test_generate_of_a_language_model_inside_is_the_generation(recorder: Recorder) -> None:
    model = tiny.seeded(lambda: Wrapper(tiny.llama_config(), transformers.LlamaForCausalLM))
    generate(model, [7, EOS], [8], prompt=0, inputs=torch.zeros(2, 3, 8, 8), max_new_tokens=6)
    assert recorder.trees() == [("text_completion Wrapper", ("forward", "prefill", "decode"))]
    assert facts(recorder, (*WRITTEN, "inferspan.batch.size")) == {
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "inferspan.batch.size": 2,
    }
    assert recorder.attributes("decode") == {"inferspan.decode.steps": 5}


def test_pipeline_batch_on_a_gpu_is_counted_when_its_ids_come_to_the_host(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While ``generate`` returns, its ids are made to look as if they were on a GPU."""
    from inferspan import semconv
    from inferspan.core import current
    from inferspan.integrations import tensors

    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    on_host = tensors.host_array
    on_gpu = []

    def host_array(tensor: Any) -> Any:
        active = current.here()
        if active is not None and active.phase is not None and active.phase.generation is not None:
            on_gpu.append(tensor.shape)
            return None
        return on_host(tensor)

    texts = ["the cat", "once upon a time there was"]
    first = model.generate(**tokenizer(texts[0], return_tensors="pt"), max_new_tokens=5, do_sample=False)
    end = int(first[0, -4])  # the first row ends with its second token
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    recorder.clear()
    monkeypatch.setattr(tensors, "host_array", host_array)
    outputs = pipe(texts, batch_size=2, max_new_tokens=5, do_sample=False, eos_token_id=end, return_tensors=True)
    rows = [output[0]["generated_token_ids"] for output in outputs]
    assert on_gpu
    attributes = recorder.span("text_completion").attributes
    width = len(rows[0]) - 5
    assert semconv.OUTPUT_TOKENS_EXACT not in attributes
    expected = 0
    for row in rows:
        new = row[width:]
        expected += new.index(end) + 1 if end in new else len(new)
    assert attributes[semconv.OUTPUT_TOKENS] == expected < 10
    assert attributes[semconv.FINISH_REASONS] == tuple("stop" if end in row[width:] else "length" for row in rows)


def test_generate_recipe_of_the_hub_that_ends_in_the_general_one_counts_once(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return model._sample(input_ids, **kwargs)

    def recipe(model: Any, **kwargs: Any) -> Any:
        return transformers.GenerationMixin.generate(model, custom_generate=sample, **kwargs)

    model = tiny.causal_lm()
    monkeypatch.setattr(type(model), "load_custom_generate", lambda *_, **__: recipe)
    model.generate(PADDED, attention_mask=MASK, custom_generate="some/recipe", max_new_tokens=3, eos_token_id=None)
    assert facts(recorder, WRITTEN) == {
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.response.finish_reasons": ("length", "length"),
    }


# -- Whisper's fallback ------------------------------------------------------------------------------------------------


def _heard(rows: int) -> tuple[Any, Any]:
    model = tiny.whisper()
    torch.manual_seed(0)
    return model, torch.randn(rows, tiny.MEL_BINS, 2 * model.config.max_source_positions)


def _answers(model: Any, *attempts: list[bool], silent: tuple[int, ...] = ()) -> None:
    """Which rows of each attempt the model decodes once more, and which it takes for silence."""
    asked = iter([answer for attempt in attempts for answer in attempt])
    model._need_fallback = lambda sequence, outputs, index, *_: (next(asked), index in silent)


@pytest.mark.parametrize(
    ("attempts", "silent", "tokens", "discarded"),
    [
        pytest.param([[False]], (), 5, None, id="first is good"),
        pytest.param([[True], [True], [False]], (), 5, 2, id="third is good"),
        pytest.param([[True], [True], [True]], (), 5, 2, id="none is good: the last counts"),
        pytest.param([[False, False]], (), 10, None, id="both rows are good"),
        pytest.param([[True, False], [True], [False]], (), 10, 2, id="one row again"),
        pytest.param([[True, True], [False, True], [False]], (), 10, 2, id="both rows again"),
        pytest.param([[False]], (0,), 0, None, id="silence"),
        pytest.param([[False, False]], (1,), 5, None, id="one row is silence"),
    ],
)
def test_tokens_of_attempts_that_whisper_discards_are_not_returned(
    recorder: Recorder, attempts: list[list[bool]], silent: tuple[int, ...], tokens: int, discarded: int | None
) -> None:
    model, features = _heard(len(attempts[0]))
    _answers(model, *attempts, silent=silent)
    recorder.clear()
    options = {"temperature": (0.0, 0.0, 0.0), "logprob_threshold": -1.0, "no_speech_threshold": 0.5}
    ids = model.generate(features, max_new_tokens=5, min_new_tokens=5, return_timestamps=False, **options)

    attributes = recorder.attributes("text_completion WhisperForConditionalGeneration")
    assert (attributes["gen_ai.usage.output_tokens"], attributes.get("inferspan.generation.fallbacks")) == (
        tokens,
        discarded,
    )
    assert "inferspan.usage.output_tokens.exact" not in attributes
    assert tokens == sum(map(len, ids.tolist())) - 5 * (len(silent) if len(attempts[0]) > 1 else 0)


def test_tokens_of_rows_that_ended_otherwise_after_whispers_fallback_are_a_bound(recorder: Recorder) -> None:
    model, features = _heard(2)
    _answers(model, [True, False], [False])
    ends = model.generation_config.eos_token_id
    script = LogitsProcessorList([Script([10, 20, ends], [10, 20, 30, 40, 50], prompt=2)])
    recorder.clear()
    model.generate(features, max_new_tokens=5, temperature=(0.0, 0.0), logprob_threshold=-1.0, logits_processor=script)

    attributes = recorder.attributes("text_completion WhisperForConditionalGeneration")
    # three with the end, and five without
    assert (attributes["gen_ai.usage.output_tokens"], attributes["inferspan.usage.output_tokens.exact"]) == (9, False)
    assert "gen_ai.response.finish_reasons" not in attributes
