"""The application of the end-to-end tests: two tiny models, served line by line. There is no telemetry in here.

Each line of its input says what to do, and how often: `classify 3`, `generate 5`, `batch`, `requests`, `fail`, `slow`.
It answers each with one line, `done`, or the name of the exception that came out. The end of its input ends it.

After `accelerate` the models count as running on a GPU: the stand-in of the tests, which they keep busy, and which once
in a while has not the memory that they ask for. Its board is the one of the driver's stub.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers

import inferspan
from inferspan.devices import identity
from support import fakedevice, tiny


def saved(name: str, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerFast) -> str:
    """The folder of a model as one downloads it; its last part is the model's name."""
    folder = Path(tempfile.mkdtemp(), name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


classifier = transformers.pipeline("text-classification", saved("tiny-bert", tiny.classifier(), tiny.word_tokenizer()))
generator = transformers.pipeline("text-generation", saved("tiny-llama", tiny.causal_lm(), tiny.text_tokenizer()))


def classify() -> None:
    classifier("A good film makes the long evening feel short.")


def generate() -> None:
    generator("The train to London", max_new_tokens=8, min_new_tokens=8, do_sample=False)


def batch() -> None:
    classifier(["A good film", "A good film makes the long evening feel short."], batch_size=2)


def requests() -> None:
    settings = transformers.GenerationConfig(do_sample=False, eos_token_id=2, pad_token_id=0)
    sizes = transformers.ContinuousBatchingConfig(page_size=256, num_blocks=32, max_batch_tokens=64)
    generator.model.generate_batch(
        [[10, 20, 30], [40, 50, 60, 70]],
        generation_config=settings,
        continuous_batching_config=sizes,
        max_new_tokens=4,
        progress_bar=False,
    )


def fail() -> None:
    classifier(3.14)


def accelerate() -> None:
    gpu = fakedevice.FakeGpu()
    fakedevice.stand_in(gpu)
    identity.torch_indices = lambda devices: {device.id: device.index for device in devices}
    torch.set_float32_matmul_precision("high")  # float32 has a peak only where it may be rounded

    def work(*_: object) -> None:
        gpu.work(0.01)
        gpu.allocate(3 << 20)
        gpu.free(3 << 20)
        gpu.failures += gpu.handed_out % (30 << 20) == 0
        gpu.finish()

    for model in (classifier.model, generator.model):
        model.register_forward_hook(work)


def think() -> None:
    with inferspan.inference("think", model=generator.model) as block:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            generator.model(torch.tensor([[10, 20, 30]]))
        block.set_tokens(output=16)


def recompile() -> None:
    for length in (4, 6):
        torch._dynamo.reset()
        model = torch.compile(classifier.model, backend="eager", dynamic=False)
        with torch.no_grad():
            for columns in (length, length + 1):
                model(input_ids=torch.ones(1, columns, dtype=torch.long))


def slow() -> None:
    with inferspan.inference("rerank", model="slow-reranker") as block, block.phase("forward"):
        time.sleep(3.5)


def answer_to(name: str, times: int) -> str:
    try:
        for _ in range(times):
            ACTIONS[name]()
    except ValueError as error:
        return type(error).__name__
    return "done"


ALL = (classify, generate, batch, requests, fail, accelerate, think, recompile, slow)
ACTIONS = {action.__name__: action for action in ALL}

print("ready", flush=True)
for line in sys.stdin:
    name, _, times = line.strip().partition(" ")
    print(answer_to(name, int(times or 1)), flush=True)
