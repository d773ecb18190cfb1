"""Pipelines of the user's own making, and models whose place on the disk is nobody's business."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.pipelines.base import ChunkPipeline

import inferspan
from inferspan.core import current
from support import tiny
from support.recorder import Recorder
from support.tiny import SENTENCES

THREE = [SENTENCES[0], SENTENCES[9], SENTENCES[3]]
ONE = ("tokenize", "forward", "detokenize")
MODEL = "BertForSequenceClassification"
CLASSIFIER = f"text-classification {MODEL}"


def make(cls: type, **options: Any) -> Any:
    """A pipeline of this class, as ``transformers.pipeline`` builds it."""
    return transformers.pipeline(
        "text-classification",
        model=tiny.classifier(),
        tokenizer=tiny.word_tokenizer(),
        device="cpu",
        pipeline_class=cls,
        **options,
    )


def stock() -> type:
    return transformers.TextClassificationPipeline


# -- classes written from nothing ----------------------------------------------------------------------------------


def own() -> type:
    """Everything that a pipeline must have, and nothing of a task's."""

    class Own(transformers.Pipeline):
        def _sanitize_parameters(self, **options: Any) -> Any:
            return {}, {}, options

        def preprocess(self, text: str) -> Any:
            return self.tokenizer(text, return_tensors="pt")

        def _forward(self, inputs: Any) -> Any:
            return self.model(**inputs)

        def postprocess(self, outputs: Any, places: int = 4) -> Any:
            return [round(score, places) for score in outputs.logits[0].tolist()]

    return Own


def own_chunks() -> type:
    """A ``ChunkPipeline`` whose generator does something after its last chunk, and returns a value."""

    class OwnChunks(ChunkPipeline):
        ended = 0

        def _sanitize_parameters(self, **_: Any) -> Any:
            return {}, {}, {}

        def preprocess(self, text: str) -> Iterator[Any]:
            words = text.split()[:2]
            for index, word in enumerate(words):
                yield {"is_last": index == len(words) - 1, **self.tokenizer(word, return_tensors="pt")}
            self.ended += 1
            return "the end"

        def _forward(self, inputs: Any) -> Any:
            is_last = inputs.pop("is_last")
            return {"is_last": is_last, "logits": self.model(**inputs).logits}

        def postprocess(self, outputs: Any) -> Any:
            return [output["logits"].argmax().item() for output in outputs]

    return OwnChunks


CHUNKS = ("tokenize", "forward", "tokenize", "forward", "detokenize")

DEFINITIONS = [
    pytest.param(own, (*ONE,), id="pipeline"),
    pytest.param(own_chunks, CHUNKS, id="chunk-pipeline"),
]


@pytest.mark.parametrize("late", [False, True], ids=["defined-before", "defined-after"])
@pytest.mark.parametrize(("define", "phases"), DEFINITIONS)
def test_own_class_gives_one_trace_and_the_same_results(
    define: Callable[[], type], phases: tuple[str, ...], late: bool, bare_recorder: Recorder
) -> None:
    plain = make(define())
    expected = [plain(THREE[0]), plain(THREE), list(plain(text for text in THREE))]
    cls = None if late else define()
    bare_recorder.instrument()
    pipe = make(cls or define())
    assert [pipe(THREE[0]), pipe(THREE), list(pipe(text for text in THREE))] == expected
    assert bare_recorder.trees() == [
        (CLASSIFIER, *phases),
        (CLASSIFIER, *phases * 3),
        (CLASSIFIER, *phases * 3),
    ]


def test_own_class_without_a_task_is_named_by_its_class(recorder: Recorder) -> None:
    pipe = own()(model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
    pipe(THREE[0])
    assert recorder.trees() == [(f"Own {MODEL}", *ONE)]


def test_own_task_with_underscores_keeps_its_name(recorder: Recorder) -> None:
    pipe = own()(model=tiny.classifier(), tokenizer=tiny.word_tokenizer(), task="rate_a_text")
    pipe(THREE[0])
    assert recorder.trees() == [(f"rate_a_text {MODEL}", *ONE)]
    assert recorder.span("rate_a_text").attributes["gen_ai.operation.name"] == "rate_a_text"


@pytest.mark.parametrize(
    ("task", "processor", "phases"),
    [
        pytest.param("rate", None, ONE, id="tokenizer-alone"),
        pytest.param("rate", "one", ("preprocess", "forward", "postprocess"), id="processor-of-anything"),
        pytest.param("text-to-audio", "one", ONE, id="processor-of-text"),
    ],
)
def test_own_phases_are_named_by_what_is_read(
    task: str, processor: Any, phases: tuple[str, ...], recorder: Recorder
) -> None:
    pipe = own()(model=tiny.classifier(), tokenizer=tiny.word_tokenizer(), task=task)
    pipe.processor = processor
    pipe(THREE[0])
    assert recorder.trees() == [(f"{task} {MODEL}", *phases)]


def test_own_class_without_a_tokenizer_preprocesses(recorder: Recorder) -> None:
    class Ids(own()):
        def preprocess(self, ids: list[int]) -> Any:
            return {"input_ids": torch.tensor([ids])}

    Ids(model=tiny.classifier(), task="rate")([[2, 40, 3]])
    assert recorder.trees() == [(f"rate {MODEL}", "preprocess", "forward", "postprocess")]


def test_chunks_generator_runs_to_its_end_as_without_us(bare_recorder: Recorder) -> None:
    def ended() -> list[int]:
        pipe = make(own_chunks())
        pipe(THREE[0])
        counts = [pipe.ended]
        pipe(THREE)
        return [*counts, pipe.ended]

    plain = ended()
    bare_recorder.instrument()
    assert ended() == plain


def test_chunks_generator_keeps_its_return_value(recorder: Recorder) -> None:
    pipe = make(own_chunks())
    pipe(THREE[0])
    chunks = pipe.preprocess(THREE[0])
    assert len([next(chunks), next(chunks)]) == 2
    with pytest.raises(StopIteration) as stop:
        next(chunks)
    assert stop.value.value == "the end"


# -- stock classes, partly overridden ------------------------------------------------------------------------------


class Everything(transformers.TextClassificationPipeline):
    """Overrides each method, and calls the stock one in it."""

    def __call__(self, inputs: Any, **options: Any) -> Any:
        return super().__call__(inputs, **options)

    def get_iterator(self, *args: Any) -> Any:
        return super().get_iterator(*args)

    def preprocess(self, inputs: Any, **options: Any) -> Any:
        return super().preprocess(inputs, **options)

    def forward(self, inputs: Any, **options: Any) -> Any:
        return super().forward(inputs, **options)

    def postprocess(self, outputs: Any, **options: Any) -> Any:
        return super().postprocess(outputs, **options)


class ByHand(transformers.TextClassificationPipeline):
    """A ``forward`` that does without the stock one."""

    def forward(self, inputs: Any, **_: Any) -> Any:
        with torch.no_grad():
            return self._forward(inputs)


class Static(transformers.TextClassificationPipeline):
    """Methods that are no functions."""

    @staticmethod
    def postprocess(outputs: Any, **_: Any) -> Any:
        return outputs["logits"].argmax().item()


def _label(outputs: Any, **_: Any) -> int:
    return outputs["logits"].argmax().item()


class Label:
    def __call__(self, outputs: Any, **options: Any) -> int:
        return _label(outputs, **options)


class CallableObject(transformers.TextClassificationPipeline):
    postprocess = Label()


class Partial(transformers.TextClassificationPipeline):
    postprocess = partial(_label, unused=1)


class PartialMethod(transformers.TextClassificationPipeline):
    def _rounded(self, places: int, outputs: Any, **_: Any) -> Any:
        return [round(score, places) for score in outputs["logits"][0].tolist()]

    postprocess = partialmethod(_rounded, 3)


class ClassMethod(transformers.TextClassificationPipeline):
    @classmethod
    def postprocess(cls, outputs: Any, **_: Any) -> Any:
        return cls.__name__, _label(outputs)


class Property(transformers.TextClassificationPipeline):
    @property
    def postprocess(self) -> Any:
        return _label


NO_DETOKENIZE = ("tokenize", "forward")


@pytest.mark.parametrize(
    ("cls", "phases"),
    [
        pytest.param(Everything, ONE, id="everything-by-super"),
        pytest.param(ByHand, ONE, id="forward-by-hand"),
        pytest.param(Static, NO_DETOKENIZE, id="static-method"),
        pytest.param(CallableObject, NO_DETOKENIZE, id="callable-object"),
        pytest.param(Partial, NO_DETOKENIZE, id="partial"),
        pytest.param(PartialMethod, NO_DETOKENIZE, id="partial-method"),
        pytest.param(ClassMethod, NO_DETOKENIZE, id="class-method"),
        pytest.param(Property, NO_DETOKENIZE, id="property"),
    ],
)
def test_subclass_gives_one_trace_and_the_same_results(
    cls: type, phases: tuple[str, ...], bare_recorder: Recorder
) -> None:
    plain = make(cls)
    expected = [plain(THREE[0]), plain(THREE), list(plain(text for text in THREE))]
    bare_recorder.instrument()
    pipe = make(cls)
    assert [pipe(THREE[0]), pipe(THREE), list(pipe(text for text in THREE))] == expected
    assert bare_recorder.trees() == [
        (CLASSIFIER, *phases),
        (CLASSIFIER, *phases * 3),
        (CLASSIFIER, *phases * 3),
    ]


class Twice(transformers.TextClassificationPipeline):
    def __call__(self, inputs: Any, **options: Any) -> Any:
        return [super(Twice, self).__call__(inputs, **options) for _ in range(2)]


class Alone(transformers.TextClassificationPipeline):
    """A ``__call__`` that does without the stock one."""

    def __call__(self, inputs: Any, **_: Any) -> Any:
        return self.postprocess(self.forward(self.preprocess(inputs)))


def test_call_overridden_to_run_twice_is_two_inferences(recorder: Recorder) -> None:
    make(Twice)(THREE[0])
    assert recorder.trees() == [(CLASSIFIER, *ONE), (CLASSIFIER, *ONE)]


def test_call_overridden_without_super_is_seen_by_the_other_hooks(bare_recorder: Recorder) -> None:
    expected = make(Alone)(THREE[0])
    bare_recorder.instrument()
    assert make(Alone)(THREE[0]) == expected
    assert bare_recorder.trees() == ["tokenize", "forward"]


def test_call_overridden_without_super_in_a_block_is_one_trace(recorder: Recorder) -> None:
    with inferspan.inference("mine"):
        make(Alone)(THREE[0])
    assert recorder.trees() == [("mine", "tokenize", "forward")]


class ItsOwnIterator(transformers.TextClassificationPipeline):
    def get_iterator(self, inputs: Any, num_workers: int, batch_size: int, *params: dict[str, Any]) -> Iterator[Any]:
        for text in inputs:
            yield self.run_single(text, *params)


def test_iterator_of_ones_own_keeps_its_type(bare_recorder: Recorder) -> None:
    expected = make(ItsOwnIterator)(THREE)
    bare_recorder.instrument()
    pipe = make(ItsOwnIterator)
    assert pipe(THREE) == expected
    result = pipe(text for text in THREE)
    assert type(result) is types.GeneratorType
    assert list(result) == expected
    assert bare_recorder.trees()[0] == (CLASSIFIER, *ONE * 3)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(None, id="none"),
        pytest.param("text", id="text"),
        pytest.param(7, id="number"),
        pytest.param([], id="empty-list"),
        pytest.param((1, "two"), id="tuple"),
        pytest.param({"input_ids": "no tensor"}, id="ids-of-text"),
        pytest.param({"input_ids": torch.zeros(0, 0, dtype=torch.long)}, id="empty-tensor"),
        pytest.param({"input_ids": torch.tensor(3)}, id="scalar-tensor"),
        pytest.param({"input_ids": torch.ones(2, 3), "attention_mask": [1, 1]}, id="mask-of-lists"),
        pytest.param(types.SimpleNamespace(logits=1), id="object"),
    ],
)
def test_odd_values_between_the_phases_pass(odd: Any, recorder: Recorder) -> None:
    class Odd(own()):
        def preprocess(self, text: str) -> Any:
            return odd

        def forward(self, inputs: Any) -> Any:
            return inputs

        def postprocess(self, outputs: Any) -> Any:
            return outputs

    assert make(Odd)(THREE[0]) is odd
    assert recorder.trees() == [(CLASSIFIER, *ONE)]


# -- patched by somebody else ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        # what the tokenizers' and models' hooks see takes the place of the phase
        pytest.param("preprocess", ONE, id="preprocess"),
        pytest.param("forward", ONE, id="forward"),
        pytest.param("_forward", ONE, id="_forward"),
        pytest.param("postprocess", NO_DETOKENIZE, id="postprocess"),
    ],
)
def test_method_replaced_on_the_instance_is_used(name: str, phases: tuple[str, ...], bare_recorder: Recorder) -> None:
    seen: list[str] = []

    def replaced(pipe: Any) -> Any:
        stock_method = getattr(transformers.TextClassificationPipeline, name)
        function = getattr(stock_method, "__wrapped__", stock_method)

        def method(self: Any, *args: Any, **options: Any) -> Any:
            seen.append(name)
            return function(self, *args, **options)

        setattr(pipe, name, types.MethodType(method, pipe))
        return pipe

    expected = replaced(make(stock()))(THREE)
    bare_recorder.instrument()
    pipe = make(stock())
    pipe(THREE[0])
    bare_recorder.clear()
    seen.clear()
    assert replaced(pipe)(THREE) == expected
    assert seen == [name] * 3
    assert bare_recorder.trees() == [(CLASSIFIER, *phases * 3)]


def test_class_patched_over_ours_stays_so_after_uninstrument(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make(stock())
    pipe(THREE[0])
    ours = vars(stock())["postprocess"]
    seen: list[int] = []

    def theirs(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(1)
        return ours(self, *args, **options)

    original = ours.__wrapped__
    stock().postprocess = theirs
    try:
        expected = pipe(THREE)
        assert len(seen) == 3
        inferspan.uninstrument()
        recorder.clear()
        assert vars(stock())["postprocess"] is theirs
        assert pipe(THREE) == expected
        assert len(seen) == 6
        assert recorder.spans() == []
    finally:
        stock().postprocess = original


def test_generate_replaced_on_the_model_is_still_one_trace(recorder: Recorder) -> None:
    pipe = transformers.pipeline(
        "text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer(), device="cpu"
    )

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        """Two tokens, by hand."""
        for _step in range(2):
            logits = pipe.model(input_ids=input_ids).logits
            input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=-1)
        return input_ids

    pipe.model.generate = generate
    pipe(THREE[0])
    assert recorder.trees() == [("text_completion LlamaForCausalLM", *ONE)]


# -- secrets -------------------------------------------------------------------------------------------------------

PROMPT = "Zanzibar quokka marmalade"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tokenizer, in a folder whose parent is a secret."""
    path = tmp_path / "secret-parent" / "mymodel"
    tiny.classifier().save_pretrained(path)
    tiny.word_tokenizer().save_pretrained(path)
    return path


def exported(recorder: Recorder) -> str:
    """Everything that left, as one text: names, attributes, events, statuses, resources, scopes, metrics."""
    spans = recorder.spans()
    parts = [span.to_json() for span in spans]
    parts += [span.instrumentation_scope.to_json() for span in spans]
    metrics = recorder.reader.get_metrics_data()
    assert spans
    assert metrics is not None
    return "\n".join([*parts, metrics.to_json()]).lower()


def assert_kept_secret(recorder: Recorder, *secrets: str) -> None:
    text = exported(recorder)
    words = ["secret-parent", *PROMPT.split(), *secrets]
    assert [word for word in words if word.lower() in text] == []


def test_model_in_a_folder_is_called_by_its_last_part(folder: Path, recorder: Recorder) -> None:
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    pipe(PROMPT)
    list(pipe(text for text in [PROMPT]))
    pipe.tokenizer(PROMPT)
    assert [tree if isinstance(tree, str) else tree[0] for tree in recorder.trees()] == [
        "load mymodel",
        "text-classification mymodel",
        "text-classification mymodel",
        "tokenize",
    ]
    assert_kept_secret(recorder, str(folder.parent.parent))


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(lambda folder: f"{folder}/", id="trailing-slash"),
        pytest.param(lambda folder: folder, id="path-object"),
        pytest.param(lambda folder: "secret-parent/mymodel", id="relative"),
        pytest.param(lambda folder: "./secret-parent/mymodel", id="relative-with-dot"),
        pytest.param(lambda folder: f"{folder}/../mymodel", id="with-dots"),
    ],
)
def test_model_in_a_folder_spelt_otherwise_keeps_its_secret(
    spelling: Callable[[Path], Any], folder: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    pipe = transformers.pipeline("text-classification", model=spelling(folder), device="cpu")
    pipe(PROMPT)
    assert recorder.trees()[-1] == ("text-classification mymodel", *ONE)
    assert_kept_secret(recorder, str(folder.parent.parent))


@pytest.mark.parametrize("where", ["tokenize", "forward"])
@pytest.mark.parametrize("lazy", [False, True], ids=["list", "generator"])
def test_error_that_quotes_prompt_and_path_keeps_them_secret(
    where: str, lazy: bool, folder: Path, recorder: Recorder
) -> None:
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    message = f"cannot read {PROMPT!r} with {folder}"
    error = RuntimeError(message)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    if where == "forward":
        pipe.model.register_forward_pre_hook(fail)
    else:
        pipe.tokenizer._encode_plus = pipe.tokenizer._batch_encode_plus = fail
    with pytest.raises(RuntimeError) as caught:
        list(pipe((text for text in [PROMPT]) if lazy else [PROMPT]))
    assert caught.value is error
    assert error.args == (message,)
    root = recorder.span("text-classification")
    assert root.attributes["error.type"] == "RuntimeError"
    assert recorder.span(where).attributes["error.type"] == "RuntimeError"
    assert_kept_secret(recorder, "cannot read", str(folder.parent.parent))


def test_model_in_a_folder_by_class_hides_its_last_part_too(folder: Path, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(local_model_name="class")
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    pipe(PROMPT)
    pipe.tokenizer(PROMPT)
    assert bare_recorder.trees()[1] == (CLASSIFIER, *ONE)
    assert bare_recorder.span("load").name == f"load {MODEL}"
    assert_kept_secret(bare_recorder, "mymodel")


def test_call_of_own_class_leaves_no_context(recorder: Recorder) -> None:
    make(own())(THREE)
    assert current.here() is None
