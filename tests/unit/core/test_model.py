"""A model's name made safe to show, and its facts: read once, never keeping it alive."""

from __future__ import annotations

import gc
import weakref
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferspan import faults
from inferspan.core.model import (
    ModelInfo,
    describe,
    display_name,
    facts_of,
    forget,
    id_set,
)

REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
SNAPSHOT = f"/home/me/.cache/huggingface/hub/models--openai-community--gpt2/snapshots/{REVISION}"


class Net:
    """A model as far as its facts are concerned."""

    def __init__(self, name: str = "", **config: Any) -> None:
        self.config = SimpleNamespace(_name_or_path=name, **config)


class Quantization(Enum):
    AWQ = "awq"


@pytest.mark.parametrize("mode", ["basename", "class"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("gpt2", ("gpt2", None), id="hub id without owner"),
        pytest.param("openai-community/gpt2", ("openai-community/gpt2", None), id="hub id"),
        pytest.param("meta-llama/Llama-3.2-1B_x", ("meta-llama/Llama-3.2-1B_x", None), id="hub id of all characters"),
        pytest.param("", ("Fallback", None), id="nothing"),
        pytest.param("/", ("Fallback", None), id="root folder"),
        pytest.param(SNAPSHOT, ("openai-community/gpt2", REVISION), id="snapshot of the cache"),
        pytest.param(SNAPSHOT + "/text_encoder", ("openai-community/gpt2", REVISION), id="folder in a snapshot"),
        pytest.param(f"C:\\hub\\models--gpt2\\snapshots\\{REVISION}", ("gpt2", REVISION), id="snapshot on Windows"),
        pytest.param(
            f"models--me--my--model/snapshots/{REVISION}", ("me/my--model", REVISION), id="snapshot of a name with --"
        ),
    ],
)
def test_display_name_of_what_is_no_secret(source: str, expected: tuple[str, str | None], mode: str) -> None:
    assert display_name(source, "Fallback", mode) == expected


@pytest.mark.parametrize(
    ("source", "last"),
    [
        pytest.param("/srv/secret/customer", "customer", id="absolute"),
        pytest.param("/srv/secret/customer/", "customer", id="absolute with a slash"),
        pytest.param("./secret/customer", "customer", id="relative with a dot"),
        pytest.param("srv/secret/customer", "customer", id="relative of three parts"),
        pytest.param("~/customer", "customer", id="home"),
        pytest.param("C:\\secret\\customer", "customer", id="Windows"),
        pytest.param("C:\\secret\\customer\\", "customer", id="Windows with a backslash"),
        pytest.param("secret\\customer", "customer", id="Windows relative"),
        pytest.param("C:/secret/customer", "customer", id="Windows with slashes"),
        pytest.param("\\\\server\\share\\customer", "customer", id="Windows share"),
        pytest.param("/srv/models--x/snapshots/main/customer", "customer", id="snapshot without a commit"),
        pytest.param("https://user:token@host/customer", "customer", id="address"),
        pytest.param("/srv/a b/ü", "ü", id="blanks and letters"),
    ],
)
def test_display_name_of_a_path_is_its_last_part_or_the_class(source: str, last: str) -> None:
    assert display_name(source, "Fallback", "basename") == (last, None)
    assert display_name(source, "Fallback", "class") == ("Fallback", None)


def test_display_name_of_a_folder_that_looks_like_a_hub_id_is_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret" / "customer").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert display_name("secret/customer", "Fallback", "basename") == ("customer", None)
    assert display_name("secret/customer", "Fallback", "class") == ("Fallback", None)
    assert display_name("secret", "Fallback", "class") == ("Fallback", None)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("x" * 1000, id="hub id"),
        pytest.param("/srv/" + "x" * 1000, id="folder"),
        pytest.param(f"models--{'x' * 1000}/snapshots/{REVISION}", id="snapshot"),
    ],
)
def test_display_name_is_bounded(source: str) -> None:
    assert display_name(source, "Fallback", "basename")[0] == "x" * 256


def test_facts_are_read_once_for_each_instance() -> None:
    model, other = Net("gpt2"), Net("gpt2")
    facts = facts_of(model)
    model.config._name_or_path = "another"

    assert facts_of(model) is facts
    assert facts.name == "gpt2"
    assert facts_of(other) is not facts


def test_facts_do_not_keep_the_model_alive() -> None:
    model = Net("gpt2")
    facts_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()

    assert gone() is None


def test_facts_of_what_has_no_hash_are_read_anew() -> None:
    class Unhashable(Net):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return self is other

    model = Unhashable("gpt2")

    assert facts_of(model) is not facts_of(model)
    assert facts_of(model).name == "gpt2"


def test_facts_of_what_has_no_weak_references_are_read_anew() -> None:
    class Slotted:
        __slots__ = ()

    assert facts_of(Slotted()).name == "Slotted"


def test_facts_forgotten_are_cold_again() -> None:
    model = Net("gpt2")
    assert facts_of(model).take_cold() is True
    assert facts_of(model).take_cold() is False
    forget(model)

    assert facts_of(model).take_cold() is True


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
def test_facts_have_name_and_revision(model: Any, local_name: str, name: str, revision: str | None) -> None:
    facts = facts_of(model, local_name)

    assert (facts.name, facts.revision, facts.cold, facts.load_ns) == (name, revision, True, None)


def test_facts_of_a_model_that_is_not_of_transformers_name_no_provider() -> None:
    facts = facts_of(Net("gpt2"))

    assert facts.provider is None
    assert facts.attributes_for("chat") == {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt2"}


def test_facts_make_the_attributes_of_an_operation_once() -> None:
    facts = ModelInfo("gpt2", "huggingface")

    assert facts.attributes_for("chat") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "huggingface",
        "gen_ai.request.model": "gpt2",
    }
    assert facts.attributes_for("chat") is facts.attributes_for("chat")
    assert facts.attributes_for("embeddings")["gen_ai.operation.name"] == "embeddings"


def test_describe_tells_all_that_the_model_says() -> None:
    model = Net(
        "gpt2",
        model_type="gpt2",
        _attn_implementation="sdpa",
        quantization_config={"quant_method": Quantization.AWQ},
    )
    vars(model).update(num_parameters=lambda: 124, get_memory_footprint=lambda: 496.0, dtype="torch.float32")
    facts = ModelInfo("gpt2")
    facts.revision = "main"

    assert describe(model, facts) == {
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
