"""A plain torch module: each call is a trace since it is put in `eval()`, and on request each layer a span.

INFERSPAN_LAYERS=transformer OTEL_TRACES_EXPORTER=inferspan_console opentelemetry-instrument python examples/modules.py
"""

import torch
from torch import nn


class Reader(nn.Module):
    """Rates sentences of word numbers; untrained, so it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 64)
        block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = nn.Linear(64, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.words(ids)).mean(1)).sigmoid()


if __name__ == "__main__":
    reader = Reader().eval()
    for length in (8, 128):
        with torch.inference_mode():
            rates = reader(torch.arange(length).reshape(1, length))
        print(f"{rates.item():.2f}  {length} words")
