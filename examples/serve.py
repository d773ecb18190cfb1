"""A service with a classification and a streaming chat. There is no telemetry in here: that is the point.

    pip install 'inferspan[otlp,transformers]' fastapi uvicorn 'opentelemetry-instrumentation-fastapi>=0.60b0'
    export OTEL_SERVICE_NAME=chat OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317
    opentelemetry-instrument python examples/serve.py

    curl localhost:8000/classify --json '{"text": "What a good day!"}'
    curl -N localhost:8000/chat --json '{"text": "Who are you?"}'

To look at it without a collector, put OTEL_TRACES_EXPORTER=inferspan_console in front. CLASSIFY_MODEL and CHAT_MODEL
are Hub ids or folders of your own models; without them two tiny ones answer nonsense. HOST and PORT are what they say.
"""

import os
from threading import Thread

import transformers
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


def load(task: str, variable: str) -> transformers.Pipeline:
    if os.environ.get(variable):
        return transformers.pipeline(task, model=os.environ[variable])
    import tiny_models

    return tiny_models.classifier() if task == "text-classification" else tiny_models.generator()


classifier = load("text-classification", "CLASSIFY_MODEL")
chatter = load("text-generation", "CHAT_MODEL")
app = FastAPI()


class Text(BaseModel):
    text: str = Field(min_length=1, max_length=800)


class Label(BaseModel):
    label: str
    score: float


@app.post("/classify")
def classify(request: Text) -> Label:
    return Label(**classifier(request.text)[0])


@app.post("/chat")
def chat(request: Text) -> StreamingResponse:
    messages = [{"role": "user", "content": request.text}]
    inputs = chatter.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(chatter.model.device)
    streamer = transformers.TextIteratorStreamer(chatter.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def generate() -> None:
        try:
            chatter.model.generate(**inputs, streamer=streamer, max_new_tokens=64)
        finally:
            streamer.end()  # without it, the response to a failed generation would never end

    Thread(target=generate).start()
    return StreamingResponse(streamer, media_type="text/plain")


if __name__ == "__main__":
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
