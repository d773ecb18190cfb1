"""Small models for the examples, so that they run without a download: random weights, so their answers mean nothing.

Your own program has its own models; nothing here has to do with telemetry.
"""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}<s>assistant:"


def _letters(name: str) -> transformers.PreTrainedTokenizerFast:
    """A token for each printable character of ASCII: knows no words, and prints nothing that a terminal acts on."""
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter.isascii()]
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *letters, "\u0120"])}  # the space
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=1024,
        name_or_path=name,
        chat_template=CHAT,
    )


def generator() -> transformers.Pipeline:
    tokenizer = _letters("tiny-llama-random")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        name_or_path="tiny-llama-random",
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)


def classifier() -> transformers.Pipeline:
    tokenizer = _letters("tiny-bert-random")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=1024,
        pad_token_id=0,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
        name_or_path="tiny-bert-random",
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
