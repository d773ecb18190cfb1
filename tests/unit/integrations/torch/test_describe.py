"""What torch's and transformers' models say of themselves, and ids as transformers takes them."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from inferspan import faults
from inferspan.core.model import ModelInfo, Models
from inferspan.integrations.torch.describe import TorchDescriber, id_set

REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
SNAPSHOT = f"/home/me/.cache/huggingface/hub/models--openai-community--gpt2/snapshots/{REVISION}"


class Net:
    """A model as far as its facts are concerned."""

    def __init__(self, name: str = "", **config: Any) -> None:
        self.config = SimpleNamespace(_name_or_path=name, **config)


class Quantization(Enum):
    AWQ = "awq"


def info_of(model: Any, local_name: str = "basename") -> ModelInfo:
    return Models().info_of(model, TorchDescriber(), local_name)


def describe(model: Any, info: ModelInfo) -> dict[str, Any]:
    return TorchDescriber().describe(model, info)


# Name, revision, provider


@pytest.mark.parametrize(
    ("model", "local_name", "name", "revision"),
    [
        pytest.param(Net("openai-community/gpt2"), "basename", "openai-community/gpt2", None, id="hub id"),
        pytest.param(Net("/secret/customer"), "basename", "customer", None, id="folder"),
        pytest.param(Net("/secret/customer"), "class", "Net", None, id="folder, class only"),
        pytest.param(Net(""), "basename", "Net", None, id="no name"),
        pytest.param(Net("gpt2", _commit_hash="abc1234"), "basename", "gpt2", "abc1234", id="commit of the hub"),
        pytest.param(Net(SNAPSHOT, _commit_hash="abc"), "class", "openai-community/gpt2", REVISION, id="snapshot"),
        pytest.param(SimpleNamespace(name_or_path="gpt2"), "basename", "gpt2", None, id="no configuration"),
    ],
)
def test_info_has_name_and_revision(model: Any, local_name: str, name: str, revision: str | None) -> None:
    info = info_of(model, local_name)

    assert (info.name, info.revision, info.cold, info.load_ns) == (name, revision, True, None)


def test_info_of_a_model_that_is_not_of_transformers_names_no_provider() -> None:
    info = info_of(Net("gpt2"))

    assert info.provider is None
    assert info.attributes_for("chat") == {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt2"}


# What is described


def test_describe_has_all_that_the_model_says() -> None:
    model = Net(
        "gpt2",
        model_type="gpt2",
        _attn_implementation="sdpa",
        quantization_config={"quant_method": Quantization.AWQ},
    )
    vars(model).update(num_parameters=lambda: 124, get_memory_footprint=lambda: 496.0, dtype="torch.float32")
    info = ModelInfo("gpt2")
    info.revision = "main"

    assert describe(model, info) == {
        "inferspan.model.class": "Net",
        "inferspan.model.type": "gpt2",
        "inferspan.model.revision": "main",
        "inferspan.model.parameters": 124,
        "inferspan.model.size": 496,
        "inferspan.model.dtype": "float32",
        "inferspan.model.quantization": "awq",
        "inferspan.model.attention": "sdpa",
    }


def test_describe_of_a_bare_object_has_its_class_only() -> None:
    assert describe(object(), ModelInfo("x")) == {"inferspan.model.class": "object"}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        pytest.param({"quant_method": "gptq"}, "gptq", id="dict"),
        pytest.param(SimpleNamespace(quant_method=Quantization.AWQ), "awq", id="object with an enum"),
        pytest.param({}, None, id="no method"),
        pytest.param(SimpleNamespace(), None, id="object without a method"),
        pytest.param({"quant_method": 4}, None, id="no text"),
    ],
)
def test_describe_names_the_quantization(quantization: Any, expected: str | None) -> None:
    attributes = describe(Net("x", quantization_config=quantization), ModelInfo("x"))

    assert attributes.get("inferspan.model.quantization") == expected


def test_describe_of_a_method_that_means_something_else_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def num_parameters(trainable: bool) -> int:
        return 1

    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    model = Net("x")
    vars(model)["num_parameters"] = num_parameters

    assert describe(model, ModelInfo("x")) == {"inferspan.model.class": "Net"}
    assert faults.counts() == {"model.num_parameters": 1}


# Whether it has changed


def changes() -> list[Any]:
    return [
        pytest.param(lambda net: net.double(), id="cast"),
        pytest.param(lambda net: net.to("meta"), id="moved"),
        pytest.param(lambda net: setattr(net, "1", nn.Linear(4, 2)), id="new head"),
        pytest.param(lambda net: net.append(nn.ReLU()), id="new part"),
    ]


@pytest.mark.parametrize("change", changes())
def test_witness_holds_until_the_model_changes(change: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    witness = TorchDescriber().witness(net)
    assert witness is not None
    seen = witness.look()
    net(torch.ones(1, 4))
    assert witness.look() == seen
    change(net)

    assert witness.look() != seen


def test_witness_of_what_is_no_module_is_none() -> None:
    assert TorchDescriber().witness(Net("gpt2")) is None


# Where its work begins and ends


@pytest.mark.parametrize(
    ("spread", "of_input", "device"),
    [
        pytest.param(None, "cuda:1", "cuda:1", id="its input's"),
        pytest.param(None, None, None, id="not known"),
        pytest.param({"": 0}, "cpu", "cuda:0", id="moved by the model's hooks"),
        pytest.param({"a": "xpu:1", "b": "cpu"}, None, "xpu:1", id="where the first part is"),
        pytest.param({"": 0}, "cuda:1", "cuda:1", id="on a device already"),
        pytest.param({}, "cpu", "cpu", id="spread over nothing"),
    ],
)
def test_device_of_a_call(spread: Any, of_input: str | None, device: str | None) -> None:
    model = Net("gpt2")
    if spread is not None:
        vars(model)["hf_device_map"] = spread

    assert TorchDescriber().device_of(model, of_input) == device


def test_a_number_is_of_the_kind_of_device_that_the_weights_are_on() -> None:
    model = Net("gpt2")
    vars(model)["hf_device_map"] = {"a": 1, "b": "cpu"}
    weights = [SimpleNamespace(device=SimpleNamespace(type=kind)) for kind in ("meta", "cpu", "npu")]
    vars(model)["parameters"] = lambda: iter(weights)
    assert TorchDescriber().device_of(model, "cpu") == "npu:1"


# Ids


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(5, frozenset({5}), id="one"),
        pytest.param([5, 6, 5], frozenset({5, 6}), id="list"),
        pytest.param((5,), frozenset({5}), id="tuple"),
        pytest.param([], frozenset(), id="empty"),
        pytest.param(-1, frozenset(), id="negative"),
        pytest.param("5", None, id="text"),
        pytest.param(None, None, id="none"),
    ],
)
def test_id_set_of_what_transformers_takes(value: Any, expected: frozenset[int] | None) -> None:
    assert id_set(value) == expected
