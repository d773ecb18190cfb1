"""transformers' own common tests of models (``tests/test_modeling_common.py`` of its source distribution), here for
six families. ``scripts/library_suites.py`` runs them, beside the unpacked source distribution."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tests.test_modeling_common import ModelTesterMixin

ROWS, LENGTH, WORDS, SIDE, FRAMES = 3, 7, 99, 30, 60

_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
}
_TEXT = {**_SHAPE, "vocab_size": WORDS, "max_position_embeddings": 64, "pad_token_id": 0}


def _ids(low: int = 1) -> torch.Tensor:
    return torch.randint(low, WORDS, (ROWS, LENGTH))


def _text() -> dict[str, Any]:
    return {"input_ids": _ids(), "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long)}


def _both() -> dict[str, Any]:
    return {**_text(), "decoder_input_ids": _ids(), "decoder_attention_mask": torch.ones(ROWS, LENGTH).long()}


def _image() -> dict[str, Any]:
    return {"pixel_values": torch.rand(ROWS, 3, SIDE, SIDE)}


def _speech() -> dict[str, Any]:
    return {"input_features": torch.rand(ROWS, 80, FRAMES), "decoder_input_ids": _ids(low=3)}


class _Tester:
    """What the mixin asks of a family: a tiny configuration, a batch, and their sizes."""

    batch_size, seq_length, num_hidden_layers, hidden_size, num_attention_heads = ROWS, LENGTH, 2, 32, 4
    is_training = True

    def __init__(self, config: Callable[[], Any], batch: Callable[[], dict[str, Any]], **sizes: int) -> None:
        self.get_config = config
        self._batch = batch
        vars(self).update(sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        return self.get_config(), self._batch()


class BertTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        transformers.BertModel,
        transformers.BertForSequenceClassification,
        transformers.BertForTokenClassification,
    )

    def setUp(self) -> None:
        self.model_tester = _Tester(lambda: transformers.BertConfig(**_TEXT), _text)


class GPT2Test(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (transformers.GPT2Model, transformers.GPT2LMHeadModel)

    def setUp(self) -> None:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": WORDS, "pad_token_id": 0}
        self.model_tester = _Tester(lambda: transformers.GPT2Config(**sizes), _text)


class LlamaTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        transformers.LlamaModel,
        transformers.LlamaForCausalLM,
        transformers.LlamaForSequenceClassification,
    )

    def setUp(self) -> None:
        self.model_tester = _Tester(lambda: transformers.LlamaConfig(num_key_value_heads=2, **_TEXT), _text)


class T5Test(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (transformers.T5Model, transformers.T5ForConditionalGeneration)
    is_encoder_decoder = True

    def setUp(self) -> None:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
        ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}
        lengths = {"encoder_seq_length": LENGTH, "decoder_seq_length": LENGTH}
        self.model_tester = _Tester(lambda: transformers.T5Config(**sizes, **ids), _both, **lengths)


class ViTTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (transformers.ViTModel, transformers.ViTForImageClassification)
    test_resize_embeddings = False

    def setUp(self) -> None:
        patches = (SIDE // 2) ** 2 + 1
        self.model_tester = _Tester(
            lambda: transformers.ViTConfig(image_size=SIDE, patch_size=2, **_SHAPE),
            _image,
            seq_length=patches,
            num_masks=4,
        )


class WhisperTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (transformers.WhisperModel, transformers.WhisperForConditionalGeneration)
    is_encoder_decoder = True
    test_resize_embeddings = False

    def setUp(self) -> None:
        sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": WORDS, "num_mel_bins": 80}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 37}
        places = {"decoder_ffn_dim": 37, "max_source_positions": FRAMES // 2, "max_target_positions": 64}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
        lengths = {"encoder_seq_length": FRAMES // 2, "decoder_seq_length": LENGTH, "is_training": False}
        self.model_tester = _Tester(
            lambda: transformers.WhisperConfig(**sizes, **heads, **places, **ids), _speech, **lengths
        )
