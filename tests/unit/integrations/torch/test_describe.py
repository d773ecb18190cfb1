"""What torch's and transformers' models say of themselves, and ids as transformers takes them."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from inferspan.core.model import ModelInfo, Models
from inferspan.integrations.torch.describe import TorchDescriber

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
    vars(model)["dtype"] = "torch.float32"
    info = ModelInfo("gpt2")
    info.revision = "main"

    assert describe(model, info) == {
        "inferspan.model.class": "Net",
        "inferspan.model.type": "gpt2",
        "inferspan.model.revision": "main",
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


# Weights


def weights_of(model: Any) -> tuple[int | None, int | None]:
    """Number of parameters and bytes."""
    attributes = describe(model, ModelInfo("x"))
    return attributes.get("inferspan.model.parameters"), attributes.get("inferspan.model.size")


def stack(*, tied: bool = False) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(8, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 8, bias=False))
    if tied:
        layers[2].weight = layers[0].weight
    return layers


class Packed(nn.Module):
    """As GPTQ and AWQ store a linear layer: eight numbers of four bits in each int32."""

    def __init__(self, inputs: int, outputs: int, kind: Any = nn.Parameter) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.bias = nn.Parameter(torch.zeros(outputs))
        packed, scales = torch.zeros(inputs // 8, outputs, dtype=torch.int32), torch.zeros(1, outputs)
        if kind is nn.Parameter:
            self.qweight, self.scales = nn.Parameter(packed, requires_grad=False), nn.Parameter(scales)
        else:
            self.register_buffer("qweight", packed)
            self.register_buffer("scales", scales)


class Experts(nn.Module):
    """Packed without a hint of what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Parameter(torch.zeros(2, 4, 4, dtype=torch.uint8), requires_grad=False)


def shared_memory() -> nn.Module:
    model = stack()
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model


def tied_with_bias() -> nn.Module:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    layers[1].weight = layers[0].weight
    return layers


def with_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8, bias=False)))


@pytest.mark.parametrize(
    ("make", "count", "size"),
    [
        pytest.param(stack, 2 * 64 + 16, 4 * (2 * 64 + 16), id="plain"),
        pytest.param(lambda: stack(tied=True), 64 + 16, 4 * (64 + 16), id="tied"),
        pytest.param(tied_with_bias, 64 + 2 * 8, 4 * (64 + 2 * 8), id="tied, each with its bias"),
        pytest.param(shared_memory, 64 + 16, 4 * (64 + 16), id="two parameters of one memory"),
        pytest.param(lambda: stack().to("meta"), 2 * 64 + 16, 4 * (2 * 64 + 16), id="without memory"),
        pytest.param(lambda: stack().to(torch.bfloat16), 2 * 64 + 16, 2 * (2 * 64 + 16), id="cast"),
        pytest.param(lambda: Packed(16, 8), 16 * 8 + 8, 4 * (2 * 8 + 8 + 8), id="packed into parameters"),
        pytest.param(lambda: Packed(16, 8, "buffer"), 16 * 8 + 8, 4 * (2 * 8 + 8 + 8), id="packed into buffers"),
        pytest.param(Experts, None, 32, id="packed, nobody knows how"),
        pytest.param(with_weight_norm, 8 + 64, 4 * (8 + 64), id="weight norm"),
        pytest.param(lambda: nn.LazyLinear(3), None, None, id="lazy"),
        pytest.param(object, None, None, id="no module"),
    ],
)
def test_weights_count_once_and_as_what_they_stand_for(make: Any, count: int | None, size: int | None) -> None:
    assert weights_of(make()) == (count, size)


def test_weights_packed_by_bitsandbytes_count_unpacked() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(2)))  # smaller ones crash its oldest version
    for place, bits in enumerate((4, 8)):
        layer = (bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt)(32, 32, bias=False)
        weight = model[place].weight.data.clone()
        layer.weight = (
            bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            if bits == 4
            else bitsandbytes.nn.Int8Params(weight, requires_grad=False)
        )
        model[place] = layer
    before, _ = weights_of(model)
    model.to("cpu")  # where the one of four bits is packed

    assert model[0].weight.dtype is torch.uint8
    assert (before, weights_of(model)[0]) == (2 * 32 * 32,) * 2


def test_weights_tied_still_count_once_when_they_are_offloaded() -> None:
    accelerate = pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50))
    expected = weights_of(model)[0]
    accelerate.cpu_offload(model, execution_device="cpu")

    assert model.lm_head.weight is not model.transformer.wte.weight
    assert weights_of(model)[0] == expected


# Adapters


def test_adapters_in_use_are_named_and_followed() -> None:
    peft = pytest.importorskip("peft")
    describer, models = TorchDescriber(), Models()
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def named() -> Any:
        return models.info_of(model, describer).attributes_for("chat").get("inferspan.model.adapter")

    assert named() is None
    config = peft.LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config, adapter_name="french")
    assert named() == "french"
    wrapped.add_adapter("legal", config)
    assert named() == "french"
    wrapped.set_adapter("legal")
    assert named() == "legal"
    wrapped.base_model.set_adapter(["french", "legal"])
    assert named() == "french+legal"
    with wrapped.disable_adapter():
        assert named() is None
    wrapped.set_adapter("french")
    wrapped.merge_adapter()
    assert named() == "french"
    wrapped.unmerge_adapter()
    wrapped.unload()
    assert named() is None


def test_adapters_with_endless_names_are_cut() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(8, 8))
    config = peft.LoraConfig(r=2, target_modules=["0"])
    wrapped = peft.get_peft_model(model, config, adapter_name="a" * 1000)
    names = ["a" * 1000, *(f"b{index}" for index in range(20))]
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    wrapped.base_model.set_adapter(names)

    assert info_of(model).adapter == "+".join(["a" * 64, *(f"b{index}" for index in range(7))])


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
