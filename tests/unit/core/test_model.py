"""A model's name made safe to show, and what is known of it: read once, never keeping it alive."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from inferspan.core.model import ModelInfo, Models, Witness, display_name

REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
SNAPSHOT = f"/home/me/.cache/huggingface/hub/models--openai-community--gpt2/snapshots/{REVISION}"


class Net:
    """A model as far as :class:`Reader` is concerned."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.witness: Seen | None = None


class Seen:
    """Looks the same until the test says that the model has changed."""

    has_changed = False

    def look(self) -> bool:
        return self.has_changed

    def adapter(self) -> str | None:
        return "legal" if self.has_changed else None


class Reader:
    """Reads models of no framework."""

    def source_of(self, model: Any) -> str:
        return getattr(model, "name", "")

    def class_of(self, model: Any) -> str:
        return type(model).__name__

    def provider_of(self, model: Any) -> str | None:
        return "nobody"

    def revision_of(self, model: Any) -> str | None:
        return "first"

    def witness(self, model: Any) -> Witness | None:
        return getattr(model, "witness", None)

    def device_of(self, model: Any, of_input: str | None) -> str | None:
        return of_input

    def describe(self, model: Any, info: ModelInfo) -> dict[str, Any]:
        return {}


@pytest.fixture
def models() -> Models:
    return Models()


# Names


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


# What is known


def test_info_is_read_once_for_each_instance(models: Models) -> None:
    model, other = Net("gpt2"), Net("gpt2")
    info = models.info_of(model, Reader())
    model.name = "another"

    assert models.info_of(model, Reader()) is info
    assert (info.name, info.provider, info.revision, info.cold, info.load_ns) == ("gpt2", "nobody", "first", True, None)
    assert models.info_of(other, Reader()) is not info


@pytest.mark.parametrize(("local_name", "name"), [("basename", "customer"), ("class", "Net")])
def test_info_is_named_as_the_setting_says(models: Models, local_name: str, name: str) -> None:
    assert models.info_of(Net("/secret/customer"), Reader(), local_name).name == name


def test_revision_of_a_snapshot_is_the_folders(models: Models) -> None:
    info = models.info_of(Net(SNAPSHOT), Reader())

    assert (info.name, info.revision) == ("openai-community/gpt2", REVISION)


def test_info_does_not_keep_the_model_alive(models: Models) -> None:
    model = Net("gpt2")
    models.info_of(model, Reader())
    gone = weakref.ref(model)
    del model
    gc.collect()

    assert gone() is None
    assert models._by_id == {}


def test_info_of_what_has_no_hash_is_remembered(models: Models) -> None:
    class Unhashable(Net):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

    model = Unhashable("gpt2")

    assert models.info_of(model, Reader()) is models.info_of(model, Reader())
    assert models.info_of(model, Reader()).name == "gpt2"


def test_info_of_what_has_no_weak_references_is_read_anew(models: Models) -> None:
    class Slotted:
        __slots__ = ()

    model = Slotted()

    assert models.info_of(model, Reader()) is not models.info_of(model, Reader())
    assert models.info_of(model, Reader()).name == "Slotted"


def test_model_forgotten_is_cold_again(models: Models) -> None:
    model = Net("gpt2")
    assert models.info_of(model, Reader()).take_cold() is True
    assert models.info_of(model, Reader()).take_cold() is False
    info = models.info_of(model, Reader())
    models.forget(model)

    assert info.is_stale
    assert models.info_of(model, Reader()).take_cold() is True


def test_model_that_has_changed_is_the_same_with_nothing_remembered(models: Models) -> None:
    model = Net("gpt2")
    model.witness = Seen()
    before = models.info_of(model, Reader())
    before.take_cold()
    before.load_ns, before.is_described, before.facts["inventory"], before.dtype = 7, True, object(), "float32"
    assert models.info_of(model, Reader()) is before
    model.witness.has_changed = True
    model.witness = Seen()
    after = models.info_of(model, Reader())

    assert after is not before
    assert (after.name, after.provider, after.revision, after.cold, after.load_ns) == (
        "gpt2",
        "nobody",
        "first",
        False,
        7,
    )
    assert (after.is_described, after.facts, after.dtype, after.devices) == (False, {}, None, 1)
    assert (before.is_stale, after.is_stale) == (True, False)
    assert models.info_of(model, Reader()) is after


def test_model_renamed_has_the_name_from_the_next_inference_on(models: Models) -> None:
    model = Net("gpt2")
    before = models.info_of(model, Reader())
    before.is_described = True
    models.rename(model, "mine", Reader())
    after = models.info_of(model, Reader())

    assert (before.name, after.name, after.is_described, after.cold) == ("gpt2", "mine", True, True)
    assert (before.is_stale, after.is_stale) == (True, False)


def test_info_makes_the_attributes_of_an_operation_once() -> None:
    info = ModelInfo("gpt2", "huggingface")

    assert info.attributes_for("chat") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "huggingface",
        "gen_ai.request.model": "gpt2",
    }
    assert info.attributes_for("chat") is info.attributes_for("chat")
    assert info.attributes_for("embeddings")["gen_ai.operation.name"] == "embeddings"
