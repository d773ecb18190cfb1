"""Every span, attribute, metric and event that leaves the process, each once.

The constants below are the names that the code uses; the same lines fill the tables ``ATTRIBUTES``, ``SPANS``,
``METRICS`` and ``EVENTS``, from which ``docs/telemetry.md`` is generated and against which the tests check what
was emitted. Standard names are imported from ``opentelemetry-semantic-conventions``; where the oldest supported
release of that package lacks one, it is spelled out here. Everything of our own is under ``inferspan.``.

Units are UCUM: seconds, bytes, ratios 0 to 1. A value that cannot be read is absent: never 0, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.attributes import hw_attributes as hw
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics, hw_metrics
from opentelemetry.semconv.attributes import error_attributes, exception_attributes

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
"""The last schema in which the ``gen_ai.*`` names used here are part of the core conventions."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute. ``type`` is an OTLP type; ``absent`` says when it is not there."""

    name: str
    type: str
    brief: str
    unit: str = ""
    absent: str = ""
    stability: str = "development"


@dataclass(frozen=True, slots=True)
class SpanType:
    """One type of span; all are of the kind INTERNAL."""

    name: str
    brief: str
    parent: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument. ``opt_in`` is the value of OTEL_SEMCONV_STABILITY_OPT_IN under which alone it is emitted,
    ``replaces`` the metric that is then not emitted. ``source`` is what it is read from; empty for what comes
    from records, else one of SOURCES."""

    name: str
    instrument: str
    unit: str
    brief: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] | None = None
    opt_in: str = ""
    replaces: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``signal`` is where it goes (a span event or a log record)."""

    name: str
    signal: str
    brief: str
    attributes: tuple[str, ...]


ATTRIBUTES: dict[str, Attribute] = {}
SPANS: dict[str, SpanType] = {}
METRICS: dict[str, Metric] = {}
EVENTS: dict[str, Event] = {}


def _attribute(name: str, type: str, brief: str, **more: str) -> str:  # noqa: A002
    ATTRIBUTES[name] = Attribute(name, type, brief, **more)
    return name


def _span(name: str, brief: str, parent: str) -> str:
    SPANS[name] = SpanType(name, brief, parent)
    return name


def _metric(
    name: str,
    instrument: str,
    unit: str,
    brief: str,
    *attributes: str,
    buckets: tuple[float, ...] | None = None,
    opt_in: str = "",
    replaces: str = "",
    source: str = "",
) -> str:
    METRICS[name] = Metric(name, instrument, unit, brief, attributes, buckets, opt_in, replaces, source)
    return name


# The tables read best with a row in a line or two, so the formatter keeps off them.
# fmt: off

# -- what was asked for ------------------------------------------------------------------------------------------

OPERATION_NAME = _attribute(gen_ai.GEN_AI_OPERATION_NAME, "string",
    "`chat`, `text_completion`, `generate_content` or `embeddings`; for what the conventions do not name, the task "
    "(`text-classification`, …), `forward`, `load`, or the name given to `inferspan.inference()`")
PROVIDER_NAME = _attribute(gen_ai.GEN_AI_PROVIDER_NAME, "string",
    "`huggingface` for models that transformers runs in this process")
REQUEST_MODEL = _attribute(gen_ai.GEN_AI_REQUEST_MODEL, "string",
    "Hub id of the model; of a local folder its last part only; of a model without a name its class")
MAX_TOKENS = _attribute(gen_ai.GEN_AI_REQUEST_MAX_TOKENS, "int", "`max_new_tokens` of the call", absent="not passed")
TEMPERATURE = _attribute(gen_ai.GEN_AI_REQUEST_TEMPERATURE, "double", "`temperature` of the call",
    absent="not passed")
TOP_P = _attribute(gen_ai.GEN_AI_REQUEST_TOP_P, "double", "`top_p` of the call", absent="not passed")
TOP_K = _attribute(gen_ai.GEN_AI_REQUEST_TOP_K, "int", "`top_k` of the call", absent="not passed")
CHOICE_COUNT = _attribute(gen_ai.GEN_AI_REQUEST_CHOICE_COUNT, "int", "`num_return_sequences` of the call",
    absent="not passed, or 1")
STOP_SEQUENCES = _attribute(gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES, "string[]",
    "`stop_strings` of the call; content, so only with content capture", absent="not passed, or no content capture")
STREAM = _attribute("gen_ai.request.stream", "boolean",
    "true where a streamer takes the tokens, or an `inference()` block says `stream=True`", absent="not streamed")
TASK = _attribute("inferspan.task", "string", "Task of the pipeline, as transformers names it",
    absent="not a pipeline")
DO_SAMPLE = _attribute("inferspan.request.do_sample", "boolean", "`do_sample` of the call", absent="not passed")
NUM_BEAMS = _attribute("inferspan.request.num_beams", "int", "`num_beams` of the call", absent="not passed")
REPETITION_PENALTY = _attribute("inferspan.request.repetition_penalty", "double", "`repetition_penalty` of the call",
    absent="not passed")
MIN_P = _attribute("inferspan.request.min_p", "double", "`min_p` of the call", absent="not passed")
CACHE_IMPLEMENTATION = _attribute("inferspan.request.cache_implementation", "string",
    "`cache_implementation` of the call", absent="not passed")
ASSISTED = _attribute("inferspan.request.assisted", "boolean",
    "true where a draft model or prompt look-up proposes tokens", absent="neither is used")
FALLBACKS = _attribute("inferspan.generation.fallbacks", "int",
    "Attempts of Whisper's temperature fallback whose tokens were computed, but not returned", absent="none")

# -- what went in and came out -----------------------------------------------------------------------------------

INPUT_TOKENS = _attribute(gen_ai.GEN_AI_USAGE_INPUT_TOKENS, "int",
    "Tokens that the model was given, special tokens included, padding not", unit="{token}",
    absent="the model reads no tokens (images, audio), or they never were on the host")
CACHE_READ_TOKENS = _attribute("gen_ai.usage.cache_read.input_tokens", "int",
    "Of the tokens given to `generate()`, those that a cache passed with them (`past_key_values`) already held",
    unit="{token}", absent="no such cache, one whose length only the device knows, or only the tokens behind it given")
OUTPUT_TOKENS = _attribute(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, "int",
    "Tokens generated in the sequences returned; a row ends with its end-of-sequence token", unit="{token}",
    absent="nothing is generated")
INPUT_TOKENS_EXACT = _attribute("inferspan.usage.input_tokens.exact", "boolean",
    "false where padding could not be recognised without a copy from the GPU: the count is an upper bound",
    absent="the count is exact")
OUTPUT_TOKENS_EXACT = _attribute("inferspan.usage.output_tokens.exact", "boolean",
    "false where rows of a batch may have ended before the last step: the count is an upper bound",
    absent="the count is exact")
FINISH_REASONS = _attribute(gen_ai.GEN_AI_RESPONSE_FINISH_REASONS, "string[]",
    "`stop` or `length`, one for each sequence returned (at most 64)", absent="not known on the host")
BATCH_SIZE = _attribute("inferspan.batch.size", "int", "Largest number of rows that one forward got", unit="{row}")
ITEMS = _attribute("inferspan.items", "int", "Items delivered to the caller", unit="{item}",
    absent="one item, no list or stream")
SEQUENCE_LENGTH = _attribute("inferspan.sequence.length", "int", "Longest sequence of the batch, padding included",
    unit="{token}")
PADDING_RATIO = _attribute("inferspan.padding.ratio", "double",
    "Share of padding among the positions that forward computed", unit="1",
    absent="no padding, or not known on the host")

# -- how long, and how -------------------------------------------------------------------------------------------

TIME_TO_FIRST_TOKEN = _attribute("inferspan.time_to_first_token", "double",
    "From the start of the inference (tokenization included) to the first token", unit="s",
    absent="nothing is generated")
TIME_TO_FIRST_CHUNK = _attribute("gen_ai.response.time_to_first_chunk", "double",
    "The same, under the conventions' name, where the tokens are streamed", unit="s", absent="not streamed")
TIME_PER_OUTPUT_TOKEN = _attribute("inferspan.time_per_output_token", "double",
    "Mean over the tokens after the first: time of decode / (steps - 1), or / (tokens - 1) with assisted decoding; "
    "where `block.token()` says several for one sequence, / the tokens after the first step",
    unit="s", absent="fewer than two tokens")
DECODE_STEPS = _attribute("inferspan.decode.steps", "int", "Steps of the decoding loop after the first token",
    unit="{step}", absent="on other spans than decode")
PHASE_NAME = _attribute("inferspan.phase", "string", "Phase of the inference, by the name of its span")
PHASE_CALLS = _attribute("inferspan.phase.calls", "int", "Calls that this one span stands for", unit="{call}",
    absent="one call")
PHASE_TIME = _attribute("inferspan.phase.time", "double",
    "Sum of the calls' own times, where one span stands for several", unit="s", absent="one call")
COLD = _attribute("inferspan.cold", "boolean", "true on the first inference of a model instance",
    absent="the instance is not known")
LAZY = _attribute("inferspan.lazy", "boolean",
    "true where the result is consumed lazily: the span lasts until the last item",
    absent="the result is complete when the call returns")
BUSY_TIME = _attribute("inferspan.busy_time", "double",
    "Time inside the library while a lazy result is consumed, without the consumer's own", unit="s",
    absent="not lazy")
ABANDONED = _attribute("inferspan.abandoned", "boolean",
    "true where a lazy result was dropped before its end, or the process ended during the inference",
    absent="it ran to its end")
CANCELLED = _attribute("inferspan.cancelled", "boolean", "true where the inference was cancelled; not an error",
    absent="not cancelled")
PREPROCESS_WORKERS = _attribute("inferspan.preprocess.workers", "int",
    "DataLoader processes that tokenized: their time is not in this trace", unit="{process}",
    absent="tokenized in this process")
CHILDREN_DROPPED = _attribute("inferspan.children.dropped", "int",
    "Child spans left out by INFERSPAN_CHILDREN_MAX or a full queue; sums and metrics include them", unit="{span}",
    absent="none")
CPU_TIME = _attribute("inferspan.process.cpu_time", "double",
    "CPU time of the whole process during the inference, all threads", unit="s")
MEMORY_USAGE = _attribute("inferspan.process.memory_usage", "int",
    "Resident set of the process at the end of the inference", unit="By", absent="not on Linux, or not readable")
DEVICE = _attribute("inferspan.device", "string", "Device of the model's input: `cpu`, `cuda:0`, …",
    absent="not known")
INPUT_DEVICE = _attribute("inferspan.input.device", "string",
    "Device of the ids handed to `decode`: off the host, the span includes the copy and the wait for it",
    absent="on the host")
RANK = _attribute("inferspan.rank", "int",
    "Rank of this process in a distributed run, over all hosts: on root spans, and on the points of all metrics but "
    "those of devices and host", absent="it is the only process")

# -- what it did to the accelerator and to memory (docs/measurements.md) --------------------------------------------

GPU_TIME = _attribute("inferspan.gpu.time", "double",
    "Time on the accelerator, between events on the current stream of the input's device; it includes the gaps in "
    "which the device waited for the host", unit="s",
    absent="on the CPU, on MPS, or where torch has no timed events for the device; inside the capture of a graph; or "
    "the device did not answer within 5 s")
GPU_BUSY_SHARE = _attribute("inferspan.gpu.busy_share", "double",
    "GPU time / duration of the inference: the rest was tokenization, detokenization and waiting", unit="1",
    absent="no GPU time")
GPU_PENDING = _attribute("inferspan.gpu.pending", "boolean",
    "On a forward: true where the device still had work when the call returned, so it is the slower one; false where "
    "it had finished, so it waited for the host (launch-bound), or the call itself waits, as `generate()` does",
    absent="no GPU time")
GPU_CYCLES = _attribute("inferspan.gpu.cycles", "int", "GPU time * SM clock: an estimate", unit="{cycle}",
    absent="no GPU time, or no clock")
GPU_CYCLES_SOURCE = _attribute("inferspan.gpu.cycles_source", "string",
    "`sm_clock`: mean of NVML's samples of the SM clock in the inference, or the nearest one", absent="no cycles")
MEMORY_BEFORE = _attribute("inferspan.memory.before", "int",
    "Bytes that torch's allocator had allocated on the device before the first forward", unit="By",
    absent="not on a device with an allocator that counts")
MEMORY_AFTER = _attribute("inferspan.memory.after", "int", "The same, at the end of the inference", unit="By",
    absent="as before")
MEMORY_PEAK = _attribute("inferspan.memory.peak", "int",
    "Highest value in between. The program's peak counter is never reset: where the inference did not raise it, this "
    "is an upper bound", unit="By", absent="as before, or the program reset its counter meanwhile")
MEMORY_PEAK_EXACT = _attribute("inferspan.memory.peak_exact", "boolean", "false where the peak is an upper bound",
    absent="the peak is exact")
MEMORY_PEAK_LEAST = _attribute("inferspan.memory.peak_least", "int", "Lower bound of the peak", unit="By",
    absent="the peak is exact")
MEMORY_ALLOCATED = _attribute("inferspan.memory.allocated", "int",
    "Sum of all allocations in between, those that were freed again included", unit="By", absent="as before")
MEMORY_HELD = _attribute("inferspan.memory.reserved", "int", "Bytes that the allocator holds of the device, at the end",
    unit="By", absent="as before")
MEMORY_RETRIES = _attribute("inferspan.memory.retries", "int",
    "How often the allocator had to empty its cache to satisfy a request, and so waited for the device",
    unit="{retry}", absent="never")
MEMORY_FRAGMENTATION = _attribute("inferspan.memory.fragmentation", "double",
    "Share of the reserved bytes that lies in split blocks and can be neither used whole nor given back", unit="1",
    absent="as before")
MEMORY_ACTIVATIONS = _attribute("inferspan.memory.activations", "int",
    "Peak - before - KV cache: what the forward itself needed at once", unit="By",
    absent="the peak is not exact, other inferences ran meanwhile, or the model is on several devices")
MEMORY_SHARED = _attribute("inferspan.memory.shared", "boolean",
    "true where other inferences ran meanwhile: the readings of memory are of all of them", absent="it ran alone")
KV_CACHE_SIZE = _attribute("inferspan.kv_cache.size", "int",
    "Keys and values of all layers at the end of the generation, in closed form from the model's shape and dtype",
    unit="By", absent="nothing is generated, or the model's shape does not determine it")
MEMORY_USAGE_BEFORE = _attribute("inferspan.process.memory_before", "int",
    "Resident set of the process at the start of the inference", unit="By", absent="not on Linux, or not readable")
HOST_ALLOCATED = _attribute("inferspan.host.allocated", "int",
    "Bytes of Python objects that the phase left behind, by `tracemalloc`; torch's own memory is not in it", unit="By",
    absent="`host_allocations` is not in `INFERSPAN_MEASURE`")
HOST_PEAK = _attribute("inferspan.host.peak", "int", "Highest value above that at its start, in the phase", unit="By",
    absent="as before, or an earlier phase was higher")
OOM_REQUESTED = _attribute("inferspan.out_of_memory.requested", "int", "Bytes that were asked for", unit="By",
    absent="the error does not say")
OOM_FREE = _attribute("inferspan.out_of_memory.free", "int", "Bytes that were free on the device", unit="By",
    absent="the error does not say")
FLOPS = _attribute("inferspan.flops.count", "int",
    "Floating-point operations of matrix products, convolutions and attention, padding included (2 for a "
    "multiply-add)", unit="{flop}", absent="the model's shape does not determine them")
FLOPS_METHOD = _attribute("inferspan.flops.method", "string",
    "`linear_inventory`: in closed form from the model's linears and the shapes of the call (docs/flops.md)",
    absent="no FLOPs")
FLOPS_EXACT = _attribute("inferspan.flops.exact", "boolean", "false where a part was left out or assumed",
    absent="all is counted")
FLOPS_UTILIZATION = _attribute("inferspan.flops.utilization", "double",
    "MFU: FLOPs / (GPU time * dense peak of the device for the model's dtype)", unit="1",
    absent="no GPU time, several devices, or the device or dtype is not in the table")
BANDWIDTH_UTILIZATION = _attribute("inferspan.memory.bandwidth_utilization", "double",
    "On decode: bytes of weights and KV cache that its steps read / (GPU time * memory bandwidth of the device)",
    unit="1", absent="as before, or the model's bytes are not known")
ENERGY_CONSUMPTION = _attribute("inferspan.energy.consumption", "double",
    "Energy of the board during the inference, idle draw and other processes included", unit="J",
    absent="shorter than 1 s, no GPU, or no energy counter")
ENERGY_METHOD = _attribute("inferspan.energy.method", "string",
    "`board_counter`; `board_counter_shared` where other inferences ran meanwhile: at each moment an equal share",
    absent="no energy")
COMPILE_TIME = _attribute("inferspan.compile.time", "double", "Time that torch.compile took in this inference",
    unit="s", absent="nothing was compiled")
COMPILE_COUNT = _attribute("inferspan.compile.count", "int", "Graphs that it compiled", unit="{graph}",
    absent="nothing was compiled")
COMPILE_REASON = _attribute("inferspan.compile.reason", "string",
    "Why torch recompiled: the guard that failed, cut at 512 characters", absent="torch does not say")
COMPILE_FUNCTION = _attribute("inferspan.compile.function", "string", "Function that was compiled",
    absent="torch gave up: the limit of recompilations was reached")
COMPILE_LOCATION = _attribute("inferspan.compile.location", "string", "Its file, without the folder, and first line",
    absent="as before")
GROWTH = _attribute("inferspan.memory.growth", "double", "Bytes that each inference leaves behind", unit="By")
GROWN = _attribute("inferspan.memory.grown", "int", "Bytes by which memory has grown in the window", unit="By")
WINDOW = _attribute("inferspan.memory.window", "int", "Inferences in the window", unit="{inference}")

# -- its layers, where they are asked for (docs/modules.md) --------------------------------------------------------

LAYER_NAME = _attribute("inferspan.layer.name", "string", "Name of the module in its model: `model.layers.7`")
LAYER_PART = _attribute("inferspan.layer.part", "string",
    "`attention`, `mlp`, or `rest`: what is neither, and all of a layer that is not divided")
LAYER_ATTENTION_TIME = _attribute("inferspan.layer.attention.time", "double",
    "Host time in the layer's attention, summed over its calls", unit="s", absent="the layer is not divided")
LAYER_MLP_TIME = _attribute("inferspan.layer.mlp.time", "double", "The same, in what else has weights", unit="s",
    absent="the layer is not divided")
LAYER_ATTENTION_GPU_TIME = _attribute("inferspan.layer.attention.gpu_time", "double",
    "Time on the accelerator in the layer's attention, summed over its calls", unit="s",
    absent="as GPU time, or the layer is not divided")
LAYER_MLP_GPU_TIME = _attribute("inferspan.layer.mlp.gpu_time", "double", "The same, in what else has weights",
    unit="s", absent="as before")
LAYER_MEMORY = _attribute("inferspan.layer.memory", "int",
    "Bytes that the layer's first call left on the device: its output; in a generation the prompt's keys and values "
    "too", unit="By", absent="not on a device with an allocator that counts")

# -- the model: on its `load` span, and on the first inference of the instance ------------------------------------

MODEL_CLASS = _attribute("inferspan.model.class", "string", "Class of the model")
MODEL_TYPE = _attribute("inferspan.model.type", "string", "`config.model_type`", absent="no configuration")
MODEL_REVISION = _attribute("inferspan.model.revision", "string", "Commit or the revision asked for",
    absent="not known")
MODEL_PARAMETERS = _attribute("inferspan.model.parameters", "int", "Number of parameters", unit="{parameter}")
MODEL_SIZE = _attribute("inferspan.model.size", "int", "Bytes of parameters and buffers", unit="By")
MODEL_DTYPE = _attribute("inferspan.model.dtype", "string", "`float32`, `bfloat16`, …")
MODEL_QUANTIZATION = _attribute("inferspan.model.quantization", "string", "Quantization method",
    absent="not quantized")
MODEL_ADAPTER = _attribute("inferspan.model.adapter", "string",
    "Names of the adapters in use (LoRA and others), joined by `+`", absent="none is in use")
MODEL_ATTENTION = _attribute("inferspan.model.attention", "string", "Attention implementation: `sdpa`, `eager`, …",
    absent="not known")
WORLD_SIZE = _attribute("inferspan.world_size", "int", "Processes of the distributed run", unit="{process}",
    absent="it is the only process")
LOAD_TIME = _attribute("inferspan.load.time", "double", "How long `from_pretrained` took, on the cold inference",
    unit="s", absent="not loaded by from_pretrained, or warm")

# -- errors and content ------------------------------------------------------------------------------------------

ERROR_TYPE = _attribute(error_attributes.ERROR_TYPE, "string",
    "Class of the exception, with its module unless built in", absent="success", stability="stable")
EXCEPTION_TYPE = _attribute(exception_attributes.EXCEPTION_TYPE, "string", "The same, on the exception event",
    stability="stable")
EXCEPTION_STACKTRACE = _attribute(exception_attributes.EXCEPTION_STACKTRACE, "string",
    "Innermost frames of the exception, each with its file as the program imports it: without the folders above that, "
    "lines of source, and its message", stability="stable")
EXCEPTION_MESSAGE = _attribute(exception_attributes.EXCEPTION_MESSAGE, "string",
    "Message of the exception. It may quote the prompt or a path, so it counts as content",
    absent="no content capture", stability="stable")
INPUT_MESSAGES = _attribute(gen_ai.GEN_AI_INPUT_MESSAGES, "string",
    "Prompts as JSON messages, the first 64, each part cut at INFERSPAN_CONTENT_LENGTH",
    absent="no content capture, or nothing that could be read (docs/configuration.md)")
OUTPUT_MESSAGES = _attribute(gen_ai.GEN_AI_OUTPUT_MESSAGES, "string",
    "Completions as JSON messages, one for each choice, without the prompt, the first 64, each part cut at "
    "INFERSPAN_CONTENT_LENGTH; with `finish_reason` where each has one", absent="as before")
SYSTEM_INSTRUCTIONS = _attribute(gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS, "string",
    "Text of the chat's system messages, as JSON parts", absent="no content capture, or no system message")

# -- on the instrumentation scope, and on metric points only ------------------------------------------------------

TRANSFORMERS_VERSION = _attribute("inferspan.transformers.version", "string", "Installed version, on the scope",
    absent="not installed")
TORCH_VERSION = _attribute("inferspan.torch.version", "string", "Installed version, on the scope",
    absent="not installed")
TOKEN_TYPE = _attribute(gen_ai.GEN_AI_TOKEN_TYPE, "string", "`input` or `output`")
TOKEN_MODALITY = _attribute("gen_ai.token.modality", "string", "`text`")
DROP_REASON = _attribute("inferspan.drop.reason", "string", "`queue_full`, `children_max`, or `fault`")

# -- on the metrics of devices and host only -----------------------------------------------------------------------

HW_ID = _attribute(hw.HW_ID, "string", "`GPU-…` or `MIG-…`, the UUID that nvidia-smi, DCGM and the driver use")
HW_NAME = _attribute(hw.HW_NAME, "string", "Name of the board: `NVIDIA H200`", absent="not readable")
HW_TYPE = _attribute(hw.HW_TYPE, "string", "`gpu`")
HW_PARENT = _attribute(hw.HW_PARENT, "string", "`hw.id` of the board that a MIG instance is a part of",
    absent="not a MIG instance")
HW_VENDOR = _attribute(hw.HW_VENDOR, "string", "`NVIDIA`")
HW_DRIVER_VERSION = _attribute(hw.HW_DRIVER_VERSION, "string", "Version of the driver", absent="not readable")
HW_STATE = _attribute(hw.HW_STATE, "string",
    "`ok`; `degraded` where rows wait to be remapped or could not be, or the driver asks for a reset; `failed` where "
    "the board is lost")
HW_SENSOR_LOCATION = _attribute(hw.HW_SENSOR_LOCATION, "string", "`gpu` or `memory`")
HW_LIMIT_TYPE = _attribute(hw.HW_LIMIT_TYPE, "string", "`high.degraded` (slows down), `high.critical` (shuts down)")
GPU_TASK = _attribute(hw.HW_GPU_TASK, "string", "`general`, `encoder` or `decoder`")
PCI_ADDRESS = _attribute("inferspan.device.pci.address", "string", "Address on the PCI bus", absent="not readable")
CLOCK = _attribute("inferspan.device.clock", "string", "`sm` or `memory`")
CLOCK_REASON = _attribute("inferspan.device.clock.reason", "string",
    "`idle`, `application`, `power_cap`, `hardware`, `sync_boost`, `thermal`, `hardware_thermal`, `power_brake`, "
    "`display`; of the times also `board_limit`, `reliability`")
REMAP = _attribute("inferspan.device.row.state", "string",
    "`corrected` or `uncorrected`, after the error that made the driver remap; `pending`: a reset will remap more; "
    "`failed`: there are no spare rows left")
PIPE = _attribute("inferspan.device.pipe", "string",
    "Part of the SM: `any_tensor`, `hmma` (16 and 8 bit floats), `imma` (integers), `dfma` (64 bit), `integer`, "
    "`fp64`, `fp32`, `fp16`")
MEMORY_LOCATION = _attribute("inferspan.device.memory.location", "string", "`dram` or `sram`")
XID_CODE = _attribute("inferspan.device.xid.code", "int", "The number of the XID, as NVIDIA's table lists it")
ECC_KIND = _attribute("inferspan.device.ecc.kind", "string", "`corrected` or `uncorrected`")
DIRECTION = _attribute("network.io.direction", "string", "`transmit` (from the device) or `receive`")
PROCESS_PID = _attribute("process.pid", "int", "Process id, as the driver gives it: in a container often the host's")
PER = _attribute("inferspan.per", "string",
    "Unit of work that a baseline is divided by: `call`, `token`, `row`, `flop`, `step` or `byte` of the KV cache")
CPU_MODE = _attribute("cpu.mode", "string", "`user`, `system`, and of the host `idle`, `iowait`, `nice`, `steal`, …")
MEMORY_STATE = _attribute("system.memory.state", "string", "`used`, `free`, `buffers` or `cached`")

# -- spans -------------------------------------------------------------------------------------------------------

INFERENCE = _span("{gen_ai.operation.name} {gen_ai.request.model}",
    "One inference: a pipeline call, a `generate()`, one request of continuous batching, or an "
    "`inferspan.inference()` block. Current while the call runs, so the program's own spans and logs nest under it",
    "whatever span is current")
TOKENIZE = _span("tokenize", "Text to ids: a pipeline's preprocess for text, or a tokenizer called directly",
    "the inference, or whatever is current")
PREPROCESS = _span("preprocess", "A pipeline's preprocess for images, audio and video", "the inference")
QUEUE = _span("queue", "Continuous batching: from submission until the scheduler takes the request", "the inference")
FORWARD = _span("forward",
    "The model runs: copy to the device, all steps, and back. For a model called directly, the whole call",
    "the inference, or whatever is current")
PREFILL = _span("prefill", "Of a generation: up to the first token (an encoder included)", "forward")
DECODE = _span("decode", "Of a generation: from the first token to the last; one span, not one per token", "forward")
DETOKENIZE = _span("detokenize",
    "From the model's output to the caller's result, for text; or a tokenizer's decode called directly",
    "the inference, or whatever is current")
POSTPROCESS = _span("postprocess", "The same for images, audio and video", "the inference")
LAYER = _span("layer {inferspan.layer.name}",
    "A layer, where layers are asked for: from its first call in the inference to the end of its last. Of several "
    "calls `inferspan.phase.time` is the sum", "forward; the inference where there was more than one forward")
LOAD = _span("load {gen_ai.request.model}", "`from_pretrained` of a model", "whatever is current")

# -- metrics -----------------------------------------------------------------------------------------------------

_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_PHASE = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
)
_STEP = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5,
)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_RATIO = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LOAD = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

_BYTES = tuple(2.0**power for power in range(20, 41, 2))
_JOULES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)

LATEST = "gen_ai_latest_experimental"
_COMMON = (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, MODEL_ADAPTER)

OPERATION_DURATION = _metric(gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION, "histogram", "s",
    "Duration of inferences, equal to that of their root spans", *_COMMON, ERROR_TYPE, buckets=_DURATION)
TOKEN_USAGE = _metric(gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE, "histogram", "{token}",
    "Tokens read and generated by one inference", *_COMMON, TOKEN_TYPE, buckets=_TOKENS)
SERVER_TIME_TO_FIRST_TOKEN = _metric(gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, "histogram", "s",
    "Time to the first token of successful generations", *_COMMON, buckets=_FIRST_TOKEN)
SERVER_TIME_PER_OUTPUT_TOKEN = _metric(gen_ai_metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN, "histogram", "s",
    "Mean time per token after the first, one point for each successful generation", *_COMMON, buckets=_PER_TOKEN)
INFERENCE_DURATION = _metric("gen_ai.client.inference.duration", "histogram", "s",
    "Duration of inferences, equal to that of their root spans", *_COMMON, ERROR_TYPE, buckets=_DURATION, opt_in=LATEST,
    replaces=OPERATION_DURATION)
INFERENCE_FIRST_CHUNK = _metric("gen_ai.client.inference.time_to_first_chunk", "histogram", "s",
    "Time to the first token of streamed generations", *_COMMON, buckets=_DURATION, opt_in=LATEST)
INFERENCE_INPUT_TOKENS = _metric("gen_ai.client.inference.operation.input_tokens", "histogram", "{token}",
    "Tokens read by one inference", *_COMMON, ERROR_TYPE, buckets=_TOKENS, opt_in=LATEST, replaces=TOKEN_USAGE)
INFERENCE_OUTPUT_TOKENS = _metric("gen_ai.client.inference.operation.output_tokens", "histogram", "{token}",
    "Tokens generated by one inference", *_COMMON, ERROR_TYPE, buckets=_TOKENS, opt_in=LATEST, replaces=TOKEN_USAGE)
USAGE_INPUT_TOKENS = _metric("gen_ai.client.inference.usage.input_tokens", "counter", "{token}", "Tokens read",
    *_COMMON, TOKEN_MODALITY, opt_in=LATEST)
USAGE_OUTPUT_TOKENS = _metric("gen_ai.client.inference.usage.output_tokens", "counter", "{token}", "Tokens generated",
    *_COMMON, TOKEN_MODALITY, opt_in=LATEST)
PHASE_DURATION = _metric("inferspan.phase.duration", "histogram", "s",
    "Time in one phase of one inference, summed over its calls", OPERATION_NAME, REQUEST_MODEL, PHASE_NAME,
    buckets=_PHASE)
INTER_TOKEN_DURATION = _metric("inferspan.inter_token.duration", "histogram", "s",
    "Time between two consecutive steps of decoding; of one generation at most INFERSPAN_TOKEN_POINTS_MAX points, "
    "evenly spaced over its steps", OPERATION_NAME, REQUEST_MODEL, buckets=_STEP)
BATCH_SIZES = _metric("inferspan.batch.rows", "histogram", "{row}", "Rows of one forward", OPERATION_NAME,
    REQUEST_MODEL, buckets=_ROWS)
PADDING_RATIOS = _metric("inferspan.batch.padding", "histogram", "1",
    "Share of padding in one batch of more than one row", OPERATION_NAME, REQUEST_MODEL, buckets=_RATIO)
ACTIVE_INFERENCES = _metric("inferspan.inference.active", "observable_updowncounter", "{inference}",
    "Inferences running now")
ERRORS = _metric("inferspan.inference.errors", "counter", "{error}", "Inferences that ended in an exception",
    *_COMMON, ERROR_TYPE)
COLD_STARTS = _metric("inferspan.inference.cold_starts", "counter", "{inference}",
    "First inferences of a model instance", *_COMMON)
LOAD_DURATION = _metric("inferspan.load.duration", "histogram", "s", "Duration of `from_pretrained` of a model",
    PROVIDER_NAME, REQUEST_MODEL, ERROR_TYPE, buckets=_LOAD)
GPU_TIMES = _metric("inferspan.gpu.time", "histogram", "s",
    "Time on the accelerator in one phase of one inference, summed over its calls", OPERATION_NAME, REQUEST_MODEL,
    PHASE_NAME, buckets=_PHASE)
MEMORY_PEAKS = _metric("inferspan.memory.peak", "histogram", "By",
    "Highest value of the device's allocator in one inference; an upper bound where it was not raised", REQUEST_MODEL,
    DEVICE, buckets=_BYTES)
MEMORY_AFTERWARDS = _metric("inferspan.memory.after", "gauge", "By",
    "Bytes allocated on the device after the last inference", REQUEST_MODEL, DEVICE)
MEMORY_GROWTH = _metric("inferspan.memory.growth", "gauge", "By",
    "Bytes that each inference leaves behind, on the device or, for `cpu`, in the process; 0 where there is no trend "
    "(docs/leaks.md)", REQUEST_MODEL, DEVICE)
OUT_OF_MEMORY = _metric("inferspan.out_of_memory", "counter", "{error}", "Allocations that failed in an inference",
    REQUEST_MODEL, DEVICE)
KV_CACHE_SIZES = _metric("inferspan.kv_cache.size", "histogram", "By",
    "Keys and values at the end of one generation", OPERATION_NAME, REQUEST_MODEL, buckets=_BYTES)
FLOPS_DONE = _metric("inferspan.flops", "counter", "{flop}", "Floating-point operations, padding included",
    OPERATION_NAME, REQUEST_MODEL, PHASE_NAME)
FLOPS_UTILIZATIONS = _metric("inferspan.flops.utilization", "histogram", "1",
    "MFU of one phase of one inference", OPERATION_NAME, REQUEST_MODEL, PHASE_NAME, buckets=_RATIO)
ENERGY_CONSUMED = _metric("inferspan.energy.consumption", "counter", "J",
    "Energy of inferences that were long enough to have one", OPERATION_NAME, REQUEST_MODEL)
ENERGY_PER_TOKEN = _metric("inferspan.energy.per_output_token", "histogram", "J",
    "Energy of one inference / tokens that it generated", OPERATION_NAME, REQUEST_MODEL, buckets=_JOULES)
COMPILE_DURATION = _metric("inferspan.compile.duration", "histogram", "s",
    "Time that torch.compile took in one inference that compiled", OPERATION_NAME, REQUEST_MODEL, buckets=_LOAD)
RECOMPILES = _metric("inferspan.compile.recompiles", "counter", "{recompile}",
    "Graphs that torch recompiled because a guard failed", OPERATION_NAME, REQUEST_MODEL)
LAYER_CALLS = _metric("inferspan.layer.calls", "counter", "{call}",
    "Calls of one layer, in the inferences whose layers were recorded", REQUEST_MODEL, LAYER_NAME)
LAYER_TIME = _metric("inferspan.layer.time", "counter", "s", "Host time of its parts, which add up to the layer",
    REQUEST_MODEL, LAYER_NAME, LAYER_PART)
LAYER_GPU_TIME = _metric("inferspan.layer.gpu.time", "counter", "s",
    "The same on the accelerator; only of layers whose calls were all timed", REQUEST_MODEL, LAYER_NAME, LAYER_PART)
DROPPED = _metric("inferspan.overhead.dropped", "counter", "{record}",
    "Children and records that were dropped, by reason", DROP_REASON)
OVERHEAD_HOOKS = _metric("inferspan.overhead.hooks.time", "observable_counter", "s",
    "Time that calling threads spent in opening and closing inferences and in reading the arguments of models; calls "
    "that only pass through, and steps of decoding, are not included")
OVERHEAD_WORKER = _metric("inferspan.overhead.worker.time", "observable_counter", "s",
    "CPU time in making spans and points of records, on any thread; span processors that export at once included")
OVERHEAD_QUEUE = _metric("inferspan.overhead.queue.max", "observable_gauge", "{record}",
    "Most records that were in the queue at once; beyond `INFERSPAN_QUEUE_MAX` children are dropped")

# -- devices, process and host: read when a reader collects (docs/devices.md) -----------------------------------------

SOURCES = {
    "device": "",
    "slow": "Only with `slow` in `INFERSPAN_DEVICES_DETAIL`",
    "gpm": "Only with `gpm` in `INFERSPAN_DEVICES_DETAIL`, from Hopper on",
    "xid": "Only with `xid` in `INFERSPAN_DEVICES_DETAIL`",
    "process": "",
    "host": "",
    "bench": "Only from `inferspan bench --otlp`",
}
"""What a metric is read from, and when it is there."""
_DEVICE = (HW_ID, HW_NAME, HW_PARENT)

DEVICE_INFO = _metric("inferspan.device.info", "observable_gauge", "1",
    "Always 1: attributes that do not change, to join with", *_DEVICE, HW_VENDOR, HW_DRIVER_VERSION, PCI_ADDRESS,
    source="device")
DEVICE_INDEX = _metric("inferspan.device.index", "observable_gauge", "1",
    "Index that torch gives the device in this process (`cuda:0` is 0). Absent before torch uses CUDA", *_DEVICE,
    source="device")
DEVICE_STATUS = _metric(hw_metrics.HW_STATUS, "observable_updowncounter", "1",
    "1 for the state that the board is in, 0 for the others", *_DEVICE, HW_TYPE, HW_STATE, source="device")
GPU_UTILIZATION = _metric(hw_metrics.HW_GPU_UTILIZATION, "observable_gauge", "1",
    "Share of the driver's sampling period (1/6 to 1 s) in which at least one kernel ran: 1 means busy, not full. "
    "Encoder and decoder only with `slow` in `INFERSPAN_DEVICES_DETAIL`", *_DEVICE, GPU_TASK, source="device")
MEMORY_BUSY = _metric("inferspan.device.memory.busy", "observable_gauge", "1",
    "Share of the same period in which device memory was read or written", *_DEVICE, source="device")
MEMORY_LIMIT = _metric(hw_metrics.HW_GPU_MEMORY_LIMIT, "observable_updowncounter", "By", "Memory of the device",
    *_DEVICE, source="device")
MEMORY_USED = _metric(hw_metrics.HW_GPU_MEMORY_USAGE, "observable_updowncounter", "By",
    "Memory in use, all processes, without what the driver reserves", *_DEVICE, source="device")
MEMORY_SHARE = _metric(hw_metrics.HW_GPU_MEMORY_UTILIZATION, "observable_gauge", "1", "Used memory / all memory",
    *_DEVICE, source="device")
MEMORY_RESERVED = _metric("inferspan.device.memory.reserved", "observable_updowncounter", "By",
    "Memory that the driver keeps for itself", *_DEVICE, source="device")
ENERGY = _metric(hw_metrics.HW_ENERGY, "observable_counter", "J", "Energy of the board since the driver was loaded",
    *_DEVICE, HW_TYPE, source="device")
POWER = _metric(hw_metrics.HW_POWER, "observable_gauge", "W", "Power of the board, mean of one second", *_DEVICE,
    HW_TYPE, source="device")
POWER_LIMIT = _metric("inferspan.device.power.limit", "observable_gauge", "W", "Power that the board may draw",
    *_DEVICE, source="device")
TEMPERATURE_NOW = _metric(hw_metrics.HW_TEMPERATURE, "observable_gauge", "Cel", "Temperature", *_DEVICE,
    HW_SENSOR_LOCATION, source="device")
CLOCK_FREQUENCY = _metric("inferspan.device.clock.frequency", "observable_gauge", "Hz", "Clock", *_DEVICE, CLOCK,
    source="device")
CLOCK_HELD = _metric("inferspan.device.clock.held", "observable_gauge", "1",
    "1 for each throttle reason that is active now, 0 for the others", *_DEVICE, CLOCK_REASON, source="device")
CLOCK_HELD_TIME = _metric("inferspan.device.clock.held_time", "observable_counter", "s",
    "Time that the clocks were throttled, by reason", *_DEVICE, CLOCK_REASON, source="device")
PCIE_GENERATION = _metric("inferspan.device.pcie.generation", "observable_gauge", "1",
    "Generation of the PCIe link now; an idle link steps down", *_DEVICE, source="device")
PCIE_WIDTH = _metric("inferspan.device.pcie.width", "observable_gauge", "{lane}",
    "Lanes of the PCIe link; read every five minutes", *_DEVICE, source="device")
PCIE_REPLAYS = _metric("inferspan.device.pcie.replays", "observable_counter", "{replay}",
    "Packets that had to be sent again", *_DEVICE, source="device")
DEVICE_IO = _metric(hw_metrics.HW_GPU_IO, "observable_counter", "By", "Bytes over PCIe", *_DEVICE, DIRECTION,
    source="device")
NVLINK_IO = _metric("inferspan.device.nvlink.io", "observable_counter", "By", "Bytes over all NVLinks, payload only",
    *_DEVICE, DIRECTION, source="device")
DEVICE_ERRORS = _metric(hw_metrics.HW_ERRORS, "observable_counter", "{error}",
    "ECC errors in the board's life (`error.type` is `corrected` or `uncorrected`)", *_DEVICE, HW_TYPE, ERROR_TYPE,
    source="device")
ROWS = _metric("inferspan.device.rows", "observable_gauge", "{row}",
    "Rows of memory remapped by the driver; for `pending` and `failed` 1 if there are any", *_DEVICE, REMAP,
    source="device")
XIDS = _metric("inferspan.device.xids", "observable_counter", "{error}",
    "XID errors that the driver has reported since the first reading", *_DEVICE, XID_CODE, source="xid")
FAN = _metric(hw_metrics.HW_FAN_SPEED_RATIO, "observable_gauge", "1", "Speed that the fan is set to", *_DEVICE,
    source="slow")
TEMPERATURE_LIMIT = _metric(hw_metrics.HW_TEMPERATURE_LIMIT, "observable_gauge", "Cel",
    "Temperature at which the GPU slows down or shuts down", *_DEVICE, HW_LIMIT_TYPE, source="slow")
PCIE_THROUGHPUT = _metric("inferspan.device.pcie.throughput", "observable_gauge", "By/s",
    "Bytes over PCIe in 20 ms, for which the driver blocks", *_DEVICE, DIRECTION, source="slow")
ECC_DETAIL = _metric("inferspan.device.ecc.errors", "observable_counter", "{error}",
    "ECC errors in the board's life, by the memory they were in", *_DEVICE, ECC_KIND, MEMORY_LOCATION, source="slow")
PROCESS_MEMORY = _metric("inferspan.device.process.memory", "observable_updowncounter", "By",
    "Device memory of one process, of the 32 that have most", *_DEVICE, PROCESS_PID, source="slow")
SM_BUSY = _metric("inferspan.device.sm.utilization", "observable_gauge", "1",
    "Mean share of SMs that had work since the last collection", *_DEVICE, source="gpm")
SM_OCCUPANCY = _metric("inferspan.device.sm.occupancy", "observable_gauge", "1", "Mean share of warps that were active",
    *_DEVICE, source="gpm")
PIPE_BUSY = _metric("inferspan.device.pipe.utilization", "observable_gauge", "1",
    "Share of cycles in which a part of the SM worked: whether tensor cores are used, and with which numbers",
    *_DEVICE, PIPE, source="gpm")
MEMORY_BANDWIDTH = _metric("inferspan.device.memory.bandwidth.utilization", "observable_gauge", "1",
    "Memory traffic / peak", *_DEVICE, source="gpm")
PROCESS_CPU_TIME = _metric("process.cpu.time", "observable_counter", "s", "CPU time of this process", CPU_MODE,
    source="process")
PROCESS_CPU = _metric("process.cpu.utilization", "observable_gauge", "1",
    "CPU time of this process since the last collection / (elapsed time * CPUs it may use)", CPU_MODE,
    source="process")
PROCESS_RESIDENT = _metric("process.memory.usage", "observable_updowncounter", "By", "Resident set of this process",
    source="process")
SYSTEM_CPU = _metric("system.cpu.utilization", "observable_gauge", "1",
    "Share of the host's CPU time since the last collection", CPU_MODE, source="host")
SYSTEM_MEMORY = _metric("system.memory.usage", "observable_updowncounter", "By", "Memory of the host", MEMORY_STATE,
    source="host")
SYSTEM_MEMORY_LIMIT = _metric("system.memory.limit", "observable_updowncounter", "By", "Memory that the host has",
    source="host")
OVERHEAD_CALLS = _metric("inferspan.overhead.devices.calls", "observable_counter", "{call}",
    "Calls of the driver made for these metrics", source="device")
OVERHEAD_TIME = _metric("inferspan.overhead.devices.time", "observable_counter", "s",
    "Time in which the reader thread was reading, waiting for the driver included", source="device")

# -- from a benchmark (docs/bench.md) --------------------------------------------------------------------------

BASELINE = _metric("inferspan.baseline", "gauge", "s", "Time of one phase / work done in it, in a benchmark",
    OPERATION_NAME, REQUEST_MODEL, PHASE_NAME, PER, source="bench")

# -- events ------------------------------------------------------------------------------------------------------

EXCEPTION_EVENT = "exception"
EVENTS[EXCEPTION_EVENT] = Event(
    EXCEPTION_EVENT,
    "span event",
    "The exception that ended the inference",
    (EXCEPTION_TYPE, EXCEPTION_STACKTRACE, EXCEPTION_MESSAGE),
)
OUT_OF_MEMORY_EVENT = "inferspan.out_of_memory"
EVENTS[OUT_OF_MEMORY_EVENT] = Event(
    OUT_OF_MEMORY_EVENT,
    "span event",
    "An allocation failed. The batch and sequence that did it are on the same span",
    (OOM_REQUESTED, OOM_FREE, MEMORY_AFTER, MEMORY_HELD, MEMORY_FRAGMENTATION),
)
RECOMPILE_EVENT = "inferspan.recompile"
EVENTS[RECOMPILE_EVENT] = Event(
    RECOMPILE_EVENT,
    "span event",
    "torch recompiled a graph during this inference; at most 8 events",
    (COMPILE_FUNCTION, COMPILE_LOCATION, COMPILE_REASON, COMPILE_TIME, ERROR_TYPE),
)
LEAK_EVENT = "inferspan.memory.leak"
EVENTS[LEAK_EVENT] = Event(
    LEAK_EVENT,
    "span event",
    "Memory has grown with each inference of this model over a complete window (docs/leaks.md)",
    (DEVICE, GROWTH, GROWN, WINDOW),
)
DETAILS_EVENT = "gen_ai.client.inference.operation.details"
EVENTS[DETAILS_EVENT] = Event(
    DETAILS_EVENT,
    "log record",
    "Prompts and completions of one inference, with EVENT_ONLY or SPAN_AND_EVENT",
    (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, INPUT_MESSAGES, OUTPUT_MESSAGES, SYSTEM_INSTRUCTIONS),
)

# fmt: on

# Values of the attributes above that more than one module uses.
CHAT = gen_ai.GenAiOperationNameValues.CHAT.value
TEXT_COMPLETION = gen_ai.GenAiOperationNameValues.TEXT_COMPLETION.value
GENERATE_CONTENT = gen_ai.GenAiOperationNameValues.GENERATE_CONTENT.value
EMBEDDINGS = gen_ai.GenAiOperationNameValues.EMBEDDINGS.value
LOAD_OPERATION = "load"
HUGGINGFACE = "huggingface"
NVIDIA = "NVIDIA"
OTHER = "_OTHER"
