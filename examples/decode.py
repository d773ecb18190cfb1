"""A decoding loop that is written out: time to the first token, time per token, prefill and decode.

OTEL_TRACES_EXPORTER=inferspan_console opentelemetry-instrument python examples/decode.py
"""

from collections.abc import Iterator

import torch

import inferspan

LETTERS = " abcdefghijklmnopqrstuvwxyz"
embed = torch.nn.Embedding(len(LETTERS), 64).requires_grad_(False)
cell = torch.nn.GRU(64, 64, batch_first=True).requires_grad_(False)
head = torch.nn.Linear(64, len(LETTERS)).requires_grad_(False)


def write(prompt: str, count: int = 24) -> Iterator[str]:
    """Letters that follow, one at a time; untrained, so they mean nothing."""
    with inferspan.inference("write", model="letters", operation="text_completion", stream=True) as block:
        with block.phase("tokenize"):
            ids = torch.tensor([[LETTERS.index(letter) for letter in prompt]])
        block.set_tokens(input=ids.numel())
        with block.phase("forward"):
            state = None
            for _ in range(count):
                output, state = cell(embed(ids), state)
                ids = head(output[:, -1:]).softmax(-1)[0].multinomial(1)
                letter = LETTERS[ids.item()]  # on a GPU this waits for it, so only now the token is there
                block.token()
                yield letter


if __name__ == "__main__":
    for start in ("the white whale", "a ship"):
        print(start + "".join(write(start)))
