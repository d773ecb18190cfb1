"""Never in the way: whatever a program, a compiler or a library does with a module comes out the same with us.

Each row of the table is one thing to do (``support/checks.py``), on each of the targets named beside it. It is done
once without Inferspan and once with it, and everything that can be seen of it must be equal: results, their types,
graphs, recompilations, signatures, files. CUDA's own rows are in ``tests/gpu/test_never_in_the_way.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo

from support import checks, mlp, tasks, tiny
from support.checks import Subject
from support.recorder import Recorder
from support.rows import Row, Target, assert_same, cells

IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
FEATURES = torch.linspace(-1, 1, 16).reshape(2, 8)


# -- the columns: what it is done to, and how Inferspan sees it --------------------------------------------------


def _bert() -> Subject:
    return Subject(tiny.classifier(return_dict=False), IDS)


def _llama() -> Subject:
    return Subject(tiny.causal_lm(num_hidden_layers=1, eos_token_id=None), IDS, use_cache=False)


def _classifying() -> Subject:
    return Subject(tasks._text_classification(), list(tiny.SENTENCES[:2]))


def _generating() -> Subject:
    return Subject(tasks._text_generation(), tiny.SENTENCES[0], max_new_tokens=4, do_sample=False)


def _tokenizing() -> Subject:
    return Subject(tiny.word_tokenizer(), list(tiny.SENTENCES[:2]))


def _mlp() -> Subject:
    return Subject(mlp.seeded(), FEATURES)


def _eager() -> Subject:
    return Subject(tiny.classifier(return_dict=False, attn_implementation="eager"), IDS, torch.ones_like(IDS))


def _wide() -> Subject:
    return Subject(tiny.classifier(return_dict=False, hidden_size=128, intermediate_size=128), IDS)


BERT = Target("bert", _bert)
EAGER = Target("eager-bert", _eager)
LLAMA = Target("llama", _llama)
PIPELINE = Target("pipeline", _classifying)
GENERATOR = Target("text-generation", _generating)
TOKENIZER = Target("tokenizer", _tokenizing)
MODULE = Target("module", _mlp)
BY_HAND = Target("by-hand", _mlp, by_hand={"name": "mlp"})
LAYERS = Target("layers", _bert, settings={"layers": "transformer"}, spans=3)
LLAMA_LAYERS = Target("llama-layers", _llama, settings={"layers": "transformer"}, spans=2)
MODULE_LAYERS = Target("by-hand-layers", _mlp, by_hand={"layers": "blocks.*"}, spans=3)

PLAIN = (MODULE, BY_HAND, MODULE_LAYERS)
MODELS = (BERT, LAYERS)
WIDE = (Target("wide-bert", _wide), Target("wide-layers", _wide, settings={"layers": "transformer"}, spans=3))
CAUSAL = (LLAMA, LLAMA_LAYERS)
MODULES = (*MODELS, *PLAIN)
ALL = (*MODULES, *CAUSAL, PIPELINE)


# -- the rows --------------------------------------------------------------------------------------------------------


PICKLED = ("forward", "__call__", "eval")
PIPED = ("preprocess", "_forward", "forward", "postprocess", "__call__")
CALLED = ("forward", "__call__", "eval", "state_dict")
TOKENIZES = ("__call__", "encode", "decode", "batch_decode", "apply_chat_template")
GENERATES = ("generate", "forward", "__call__")

# fmt: off
TABLE = [
    # compiled
    Row("compile, eager",             checks.compiled("eager", fullgraph=True),          MODULES),
    Row("compile, aot_eager",         checks.compiled("aot_eager", fullgraph=True),      MODULES),
    Row("compile, inductor",          checks.compiled("inductor", fullgraph=True),       MODULES, "c++"),
    Row("compile in place",           checks.compiled_in_place,                          MODULES),
    Row("compile forward",            checks.compiled_forward,                           MODULES),
    Row("compile a caller",           checks.compiled_function,                          MODULES),
    Row("compile, graph breaks",      checks.compiled_with_breaks,                       MODULES),
    Row("compile, shapes marked",     checks.compiled_dynamic(None),                     MODULES),
    Row("compile, shapes dynamic",    checks.compiled_dynamic(True),                     MODULES),
    Row("compile, shapes static",     checks.compiled_dynamic(False),                    MODULES),
    Row("compiled before",            checks.compiled_before,                            MODULES),
    # torch 2.4 cannot compile a Llama of transformers 4.57, with or without us
    Row("compile a Llama, eager",     checks.compiled("eager", fullgraph=True),          CAUSAL, "torch>=2.5"),
    Row("compile a Llama, aot_eager", checks.compiled("aot_eager", fullgraph=True),      CAUSAL, "torch>=2.5"),
    Row("compile a Llama in place",   checks.compiled_in_place,                          CAUSAL, "torch>=2.5"),
    Row("compile a Llama, breaks",    checks.compiled_with_breaks,                       CAUSAL, "torch>=2.5"),
    Row("generate, a whole graph",    checks.generated_compiled(fullgraph=True),         CAUSAL, "torch>=2.5"),
    Row("generate, compiled steps",   checks.generated_compiled(fullgraph=False),        CAUSAL),
    # exported, traced, transformed
    Row("export, strict",             checks.exported(strict=True),                      MODULES),
    Row("export, not strict",         checks.exported(strict=False),                     MODULES),
    Row("jit.trace",                  checks.jit_traced,                                 MODULES),
    Row("jit.script",                 checks.jit_scripted,                               PLAIN),
    Row("fx.symbolic_trace",          checks.fx_traced,                                  PLAIN),
    Row("make_fx",                    checks.fx_made,                                    (EAGER, *PLAIN)),
    Row("fake tensors",               checks.with_fake_tensors,                          (EAGER, *PLAIN)),
    Row("flop counter",               checks.flops_counted,                              ALL),
    Row("functional_call",            checks.called_functionally,                        (*MODULES, *CAUSAL)),
    Row("vmap",                       checks.mapped,                                     PLAIN),
    Row("jacrev, jvp",                checks.differentiated,                             PLAIN),
    # copied, saved, sent
    Row("deepcopy",                   checks.copied(checks.copy.deepcopy),               ALL),
    Row("pickle",                     checks.copied(checks.pickled),                     ALL),
    Row("torch.save",                 checks.copied(checks.saved),                       ALL),
    Row("saved before",               checks.saved_before,                               ALL),
    Row("what is saved",              checks.size_saved,                                 ALL),
    Row("copy.copy",                  checks.copied_shallowly,                           ALL),
    Row("bound methods saved",        checks.bound_methods_saved(*PICKLED),              MODULES),
    Row("generate saved",             checks.bound_methods_saved(*GENERATES[::-1]),      CAUSAL),
    Row("pipeline's methods saved",   checks.bound_methods_saved(*PIPED[::-1]),          (PIPELINE,)),
    Row("tokenizer's methods saved",  checks.bound_methods_saved(*TOKENIZES),            (TOKENIZER,)),
    Row("share_memory",               checks.shared,                                     ALL, "fork"),
    Row("DataLoader, fork",           checks.loaded_by("fork"),                          ALL, "fork"),
    Row("DataLoader, spawn",          checks.loaded_by("spawn"),                         (MODULE, PIPELINE)),
    Row("DataLoader, forkserver",     checks.loaded_by("forkserver"),                    (MODULE,), "forkserver"),
    Row("pipeline's worker, fork",    checks.piped_by("fork"),                           (PIPELINE,), "fork"),
    Row("pipeline's worker, spawn",   checks.piped_by("spawn"),                          (PIPELINE,)),
    Row("pool, fork",                 checks.pooled_by("fork"),                          ALL, "fork"),
    Row("pool, spawn",                checks.pooled_by("spawn"),                         (MODULE,)),
    Row("pool, forkserver",           checks.pooled_by("forkserver"),                    (MODULE,), "forkserver"),
    # changed by other libraries
    Row("accelerate, cpu_offload",    checks.offloaded,                                  MODULES, "accelerate"),
    Row("accelerate, disk_offload",   checks.offloaded_to_disk,                          MODULES, "accelerate"),
    Row("accelerate, hooks",          checks.hooked_by_accelerate,                       MODULES, "accelerate"),
    Row("peft, LoRA",                 checks.lora,                                       CAUSAL, "peft"),
    Row("peft, LoRA trained",         checks.lora_trained,                               CAUSAL, "peft"),
    Row("bitsandbytes, 8 bits",       checks.quantised_by_bitsandbytes(8),               WIDE, "bitsandbytes"),
    Row("bitsandbytes, 4 bits",       checks.quantised_by_bitsandbytes(4),               WIDE, "bitsandbytes"),
    Row("torchao",                    checks.quantised_by_torchao,                       MODULES, "torchao"),
    Row("torchao, compiled",          checks.quantised_and_compiled,                     MODULES, "torchao torch>=2.5"),
    Row("quantize_dynamic",           checks.quantised_by_torch,                         MODULES),
    Row("parametrize",                checks.parametrised,                               MODULES),
    # trained
    Row("gradients",                  checks.trained,                                    (*MODULES, *CAUSAL)),
    Row("checkpointing",              checks.checkpointed(reentrant=False),              (*MODELS, *CAUSAL)),
    Row("checkpointing, reentrant",   checks.checkpointed(reentrant=True),               (*MODELS, *CAUSAL)),
    # hooks, results, errors
    Row("hooks of the program's",     checks.hooks_run,                                  MODULES),
    Row("hooks change the result",    checks.hook_changes_the_result,                    MODULES),
    Row("called",                     checks.called,                                     ALL),
    Row("generate, greedy",           checks.generated(do_sample=False),                 CAUSAL),
    Row("generate, sampled",          checks.generated(do_sample=True),                  CAUSAL),
    Row("generate, beams",            checks.generated(num_beams=2),                     CAUSAL),
    Row("the program's error",        checks.failed,                                     ALL),
    # looked at
    Row("what a class shows",         checks.looked_at,                                  (*ALL, TOKENIZER)),
    Row("help()",                     checks.helped,                                     (*ALL, TOKENIZER)),
    Row("methods",                    checks.methods(*CALLED),                           MODULES),
    Row("generate's methods",         checks.methods(*GENERATES),                        CAUSAL),
    Row("pipeline's methods",         checks.methods(*PIPED),                            (PIPELINE, GENERATOR)),
    Row("tokenizer's methods",        checks.methods(*TOKENIZES),                        (TOKENIZER,)),
    Row("isinstance",                 checks.is_what_it_is,                              ALL),
    Row("freed",                      checks.freed,                                      ALL),
    Row("freed after an error",       checks.freed_after_an_error,                       ALL),
    Row("freed after compiling",      checks.freed_after_compiling,                      MODULES),
    # subclasses
    Row("subclass made after",        checks.subclassed,                                 ALL),
    Row("subclass made before",       checks.subclassed_before,                          ALL),
    # other instrumentations on the same methods
    Row("wrapt first",                checks.other_first("wrapt"),                       (GENERATOR,)),
    Row("wrapt last",                 checks.other_last("wrapt"),                        (GENERATOR,)),
    Row("OpenLLMetry first",          checks.other_first("openllmetry"),                 (GENERATOR,), "OpenLLMetry"),
    Row("OpenLLMetry last",           checks.other_last("openllmetry"),                  (GENERATOR,), "OpenLLMetry"),
    Row("openlit first",              checks.other_first("openlit"),                     (GENERATOR,), "openlit"),
    Row("openlit last",               checks.other_last("openlit"),                      (GENERATOR,), "openlit"),
    # uninstrument()
    Row("gone meanwhile",             checks.gone_meanwhile,                             ALL),
    Row("generate, gone meanwhile",   checks.generation_gone_meanwhile,                  CAUSAL),
    Row("put back",                   checks.put_back,                                   ALL),
]
# fmt: on


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    """Nothing compiled, and no other instrumentation: it cannot go while ours is over it."""
    before = [(owner, name, vars(owner)[name]) for owner, name in checks.OTHERS_WRAP]
    yield
    torch._dynamo.reset()
    for owner, name, original in before:
        setattr(owner, name, original)


@pytest.mark.parametrize(("row", "target"), cells(TABLE))
def test_same_with_and_without(row: Row, target: Target, bare_recorder: Recorder) -> None:
    assert_same(row, target, bare_recorder)
