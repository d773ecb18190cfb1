"""Tiny real models and tokenizers: random seeded weights, trained vocabularies, nothing downloaded.

Models and tokenizers are made fresh by each call, as a test may hook or change them; only the
trained vocabularies are cached.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

M = TypeVar("M", bound=torch.nn.Module)

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A good film makes the long evening feel short.",
    "I did not like the ending, but the music was great.",
    "The train to London leaves at seven in the morning.",
    "She works at a small company in Paris.",
    "My name is Wolfgang and I live in Berlin.",
    "How many people live in the largest city of the country?",
    "The price of the house is higher than we expected.",
    "Please open the window, it is warm in here.",
    "The model reads a sentence and writes the next word.",
    "Every token has a number, and every number has a vector.",
    "What is the total of the invoice from last month?",
    "The doctor said that the patient can go home today.",
    "We measured how long each part of the work took.",
    "A cat sat on the mat and looked at the red ball.",
    "This example is about politics, science, or sports.",
    "The machine has two small cores and little memory.",
    "They played the whole match in the heavy rain.",
    "He wrote a letter to his sister and sent it by post.",
    "Could you tell me where the station is?",
    "The answer to the question is in the second table.",
    "Birds fly south when the winter is near.",
    "Nothing is faster than light, as far as we know.",
    "Translate the text from English to German.",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"


def seeded(build: Callable[[], M], seed: int = 0) -> M:
    """Build a model with the same random weights every time, in eval mode, leaving the global seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def _without_added_tokens(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), "added_tokens": []}))


@cache
def _word_pieces() -> tokenizers.Tokenizer:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Left alone, the trainer numbers these in the order of a hash table: other ids in each process.
    inner = [f"##{letter}" for letter in sorted(set("".join(SENTENCES).lower()) - {" "})]
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        SENTENCES,
        trainers.WordPieceTrainer(vocab_size=320, special_tokens=[*specials, *inner], show_progress=False),
    )
    backend = _without_added_tokens(backend)
    backend.add_special_tokens(specials)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return backend


@cache
def _byte_pairs(specials: tuple[str, ...] = (PAD, BOS, EOS, UNK, IMAGE, *ROLES)) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(specials),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return backend


def word_tokenizer(**options: Any) -> transformers.PreTrainedTokenizerFast:
    """BERT style word pieces: [CLS] a [SEP] b [SEP], padding on the right, at most 128 tokens."""
    return transformers.PreTrainedTokenizerFast(
        **{
            "tokenizer_object": _word_pieces(),
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            "padding_side": "right",
            "model_max_length": 128,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            **options,
        }
    )


def text_tokenizer(**options: Any) -> transformers.PreTrainedTokenizerFast:
    """GPT style byte pairs with a chat template, padding on the left; pad and eos are two tokens."""
    return transformers.PreTrainedTokenizerFast(
        **{
            "tokenizer_object": _byte_pairs(),
            "pad_token": PAD,
            "bos_token": BOS,
            "eos_token": EOS,
            "unk_token": UNK,
            "padding_side": "left",
            "model_max_length": 256,
            "model_input_names": ["input_ids", "attention_mask"],
            "chat_template": CHAT_TEMPLATE,
            **options,
        }
    )


def seq2seq_tokenizer(**options: Any) -> transformers.PreTrainedTokenizerFast:
    """T5 style: the byte pairs of `text_tokenizer` ended by eos, padding on the right."""
    backend = tokenizers.Tokenizer.from_str(_byte_pairs().to_str())
    eos = backend.token_to_id(EOS)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, eos)]
    )
    return text_tokenizer(tokenizer_object=backend, padding_side="right", **options)


def bert_config(**overrides: Any) -> transformers.BertConfig:
    """The shape shared by all the BERT models here; its vocabulary is that of `word_tokenizer`."""
    return transformers.BertConfig(
        **{
            "vocab_size": _word_pieces().get_vocab_size(),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            **overrides,
        }
    )


def classifier(**overrides: Any) -> transformers.BertForSequenceClassification:
    """A BERT with two labels, NEGATIVE and POSITIVE."""
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = bert_config(
        **{"id2label": labels, "label2id": {name: index for index, name in labels.items()}, **overrides}
    )
    return seeded(lambda: transformers.BertForSequenceClassification(config))


def embedder(**overrides: Any) -> transformers.BertModel:
    """A BERT without a head."""
    return seeded(lambda: transformers.BertModel(bert_config(**overrides)))


def _text_ids() -> dict[str, int | None]:
    backend = _byte_pairs()
    return {
        "pad_token_id": backend.token_to_id(PAD),
        "bos_token_id": backend.token_to_id(BOS),
        "eos_token_id": backend.token_to_id(EOS),
    }


def llama_config(**overrides: Any) -> transformers.LlamaConfig:
    """The shape of `causal_lm`; its vocabulary is that of `text_tokenizer`."""
    return transformers.LlamaConfig(
        **{
            "vocab_size": _byte_pairs().get_vocab_size(),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            **_text_ids(),
            **overrides,
        }
    )


def causal_lm(**overrides: Any) -> transformers.LlamaForCausalLM:
    """A Llama that generates greedily unless told otherwise."""
    return seeded(lambda: transformers.LlamaForCausalLM(llama_config(**overrides)))


def draft_lm(**overrides: Any) -> transformers.LlamaForCausalLM:
    """A smaller Llama with the same vocabulary, for assisted generation."""
    return causal_lm(**{"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, **overrides})


def gpt2(**overrides: Any) -> transformers.GPT2LMHeadModel:
    """A GPT-2 with the same vocabulary as `causal_lm`."""
    config = transformers.GPT2Config(
        **{
            "vocab_size": _byte_pairs().get_vocab_size(),
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 256,
            "initializer_range": 0.2,
            **_text_ids(),
            **overrides,
        }
    )
    return seeded(lambda: transformers.GPT2LMHeadModel(config))


def t5_config(**overrides: Any) -> transformers.T5Config:
    """The shape of `seq2seq_lm`; its vocabulary is that of `seq2seq_tokenizer`."""
    ids = _text_ids()
    return transformers.T5Config(
        **{
            "vocab_size": _byte_pairs().get_vocab_size(),
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "pad_token_id": ids["pad_token_id"],
            "eos_token_id": ids["eos_token_id"],
            "decoder_start_token_id": ids["pad_token_id"],
            "initializer_factor": 2.0,
            **overrides,
        }
    )


def seq2seq_lm(**overrides: Any) -> transformers.T5ForConditionalGeneration:
    """An encoder-decoder T5."""
    return seeded(lambda: transformers.T5ForConditionalGeneration(t5_config(**overrides)))


MEL_BINS, AUDIO_RATE, MEL_HOP = 16, 16_000, 160

# The order matters: Whisper takes every id behind <|notimestamps|> for a time stamp.
WHISPER_SPECIALS = [
    f"<|{name}|>"
    for name in (
        *("endoftext", "startoftranscript", "en", "translate", "transcribe"),
        *("startoflm", "startofprev", "nospeech", "notimestamps"),
    )
]


@cache
def _whisper_backend() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(_byte_pairs(specials=()).to_str())
    backend.add_special_tokens(WHISPER_SPECIALS)
    backend.add_tokens([f"<|{index * 0.02:.2f}|>" for index in range(51)])
    return backend


def whisper_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The special tokens of Whisper behind 400 byte pairs, and 51 time stamps (one second)."""
    with tempfile.TemporaryDirectory() as folder:
        _whisper_backend().save(str(Path(folder, "tokenizer.json")))
        return transformers.WhisperTokenizerFast.from_pretrained(
            folder, pad_token=WHISPER_SPECIALS[0], additional_special_tokens=WHISPER_SPECIALS[1:]
        )


def whisper_features() -> transformers.WhisperFeatureExtractor:
    """Windows of one second instead of thirty."""
    return transformers.WhisperFeatureExtractor(
        feature_size=MEL_BINS, sampling_rate=AUDIO_RATE, hop_length=MEL_HOP, chunk_length=1
    )


def whisper(**overrides: Any) -> transformers.WhisperForConditionalGeneration:
    """An English-only Whisper that hears one second."""
    token = _whisper_backend().token_to_id
    end, start = token("<|endoftext|>"), token("<|startoftranscript|>")
    ids = {
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": start,
    }
    config = transformers.WhisperConfig(
        **{
            "vocab_size": _whisper_backend().get_vocab_size(),
            "num_mel_bins": MEL_BINS,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_source_positions": AUDIO_RATE // MEL_HOP // 2,
            "max_target_positions": 64,
            "init_std": 0.2,
            "begin_suppress_tokens": None,
            **ids,
            **overrides,
        }
    )
    model = seeded(lambda: transformers.WhisperForConditionalGeneration(config))
    model.generation_config = transformers.GenerationConfig(
        **ids,
        max_length=32,
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=token("<|notimestamps|>"),
        prev_sot_token_id=token("<|startofprev|>"),
        alignment_heads=[[1, 0], [1, 1]],  # of word time stamps: (layer, head)
    )
    return model
