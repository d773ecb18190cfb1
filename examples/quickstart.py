"""One traced inference, drawn in this terminal: python examples/quickstart.py [hub id or folder of a text generator]"""

import sys

import tiny_models
import transformers
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import inferspan
from inferspan.exporters.console import WaterfallSpanExporter

trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(WaterfallSpanExporter()))
inferspan.instrument()

pipe = transformers.pipeline("text-generation", model=sys.argv[1]) if sys.argv[1:] else tiny_models.generator()
print(pipe("Once upon a time", max_new_tokens=32)[0]["generated_text"])
