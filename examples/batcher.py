"""A dynamic batcher: one forward serves several requests, and its span is linked to theirs.

OTEL_TRACES_EXPORTER=inferspan_console opentelemetry-instrument python examples/batcher.py
"""

import asyncio

import torch
from opentelemetry import trace

import inferspan

WORDS = ("the", "a", "whale", "ship", "sea", "captain", "white", "is", "was")
embed = torch.nn.EmbeddingBag(len(WORDS), 16)
head = torch.nn.Linear(16, 2)
tracer = trace.get_tracer("batcher")


class Batcher:
    """What comes within ten milliseconds is answered together."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue = asyncio.Queue()

    async def rate(self, text: str) -> float:
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((text, trace.get_current_span(), answer))
        return await answer

    async def run(self) -> None:
        while True:
            requests = [await self.waiting.get()]
            await asyncio.sleep(0.01)
            while not self.waiting.empty():
                requests.append(self.waiting.get_nowait())
            for (*_, answer), score in zip(requests, self._forward(requests), strict=True):
                answer.set_result(score)

    def _forward(self, requests: list) -> list[float]:
        with inferspan.inference(
            "batch", model="bag-of-words", operation="rate", links=[r[1] for r in requests]
        ) as block:
            with block.phase("tokenize"):
                ids = [[WORDS.index(word) for word in text.split()] for text, *_ in requests]
                starts = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
            block.set_batch_size(len(requests))
            block.set_tokens(input=sum(map(len, ids)))
            with block.phase("forward"), torch.inference_mode():
                words = torch.tensor([word for each in ids for word in each])
                return head(embed(words, starts)).softmax(-1)[:, 1].tolist()


async def request(batcher: Batcher, text: str) -> None:
    with tracer.start_as_current_span("POST /rate"):
        print(f"{await batcher.rate(text):.2f}  {text}")


async def main() -> None:
    batcher = Batcher()
    running = asyncio.create_task(batcher.run())
    await asyncio.gather(*(request(batcher, text) for text in ("the white whale", "a ship is a ship", "the sea")))
    running.cancel()


if __name__ == "__main__":
    asyncio.run(main())
