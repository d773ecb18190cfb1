"""An inference of your own, plain torch without transformers: its root span, its phases, its figures.

OTEL_TRACES_EXPORTER=inferspan_console opentelemetry-instrument python examples/own_code.py
"""

import torch

import inferspan

WORDS = ("the", "a", "whale", "ship", "sea", "captain", "white", "is", "was")
embed = torch.nn.EmbeddingBag(len(WORDS), 16)
head = torch.nn.Linear(16, 2)


def rate(text: str) -> float:
    """How likely a sentence is about the sea; untrained, so it does not know."""
    with inferspan.inference("rate sentence", model="bag-of-words", operation="rate") as block:
        with block.phase("tokenize"):
            ids = torch.tensor([[WORDS.index(word) for word in text.lower().split() if word in WORDS]])
        block.set_tokens(input=ids.numel())
        with block.phase("forward") as phase, torch.inference_mode():
            phase.set_attribute("app.layers", 2)
            scores = head(embed(ids)).softmax(-1)
        return scores[0, 1].item()


if __name__ == "__main__":
    for sentence in ("the white whale", "a ship is a ship"):
        print(f"{rate(sentence):.2f}  {sentence}")
