"""One model over two processes (tensor parallelism): each of them computes its part of every inference, and records it.

OTEL_TRACES_EXPORTER=inferspan_console INFERSPAN_RANKS=0 torchrun --nproc-per-node 2 --no-python \
    opentelemetry-instrument python examples/tensor_parallel.py [hub id or folder of a text generator]

INFERSPAN_RANKS=0: all ranks record the same inference, so the first one is enough. Needs torch 2.5.
"""

import os
import sys
import tempfile

import tiny_models
import torch
import transformers

with tempfile.TemporaryDirectory() as folder:
    source = sys.argv[1] if sys.argv[1:] else os.path.join(folder, "tiny-llama-random")
    if not sys.argv[1:]:
        tiny_models.generator().save_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, tp_plan="auto")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)

pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
answer = pipe("Once upon a time", max_new_tokens=32, do_sample=False)[0]["generated_text"]
if torch.distributed.get_rank() == 0:
    print(answer)
torch.distributed.destroy_process_group()
