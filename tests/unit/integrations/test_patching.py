"""Replaced methods: like the originals to everybody who looks, and gone by identity afterwards."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inferspan.integrations.patching import Patches, is_ours


class Base:
    """Stands for a class of a library. At the top of the module, so that it can be pickled."""

    def __init__(self) -> None:
        self._size = 1

    def run(self, text: str, *, times: int = 2) -> str:
        """Repeats."""
        return text * times

    @classmethod
    def make(cls, kind: str = "plain") -> tuple[str, str]:
        """Makes."""
        return cls.__name__, kind

    @staticmethod
    def helper(text: str) -> str:
        return text

    @property
    def size(self) -> int:
        """How large."""
        return self._size

    @size.setter
    def size(self, value: int) -> None:
        self._size = value

    @property
    def fixed(self) -> int:
        return 1


class Derived(Base):
    pass


CALLS: list[str] = []


def noting(original: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        CALLS.append(original.__name__)
        return original(*args, **kwargs)

    return replacement


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Every test leaves the class exactly as it was."""
    CALLS.clear()
    for owner in (Base, Derived):
        copy.copy(owner())  # leaves a cache of its own on the class
    before = [(owner, dict(vars(owner))) for owner in (Base, Derived)]
    yield
    for owner, attributes in before:
        assert {name: value for name, value in vars(owner).items() if attributes.get(name) is not value} == {}
        assert set(vars(owner)) == set(attributes)


@pytest.fixture
def patches() -> Iterator[Patches]:
    patches = Patches()
    yield patches
    patches.undo()


# Methods


def test_method_wrapped_runs_the_replacement_around_the_original(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)

    assert (Base().run("a", times=3), Derived().run("b")) == ("aaa", "bb")
    assert CALLS == ["run", "run"]


def test_method_undone_is_the_original_by_identity(patches: Patches) -> None:
    original = vars(Base)["run"]
    patches.wrap(Base, "run", noting)
    assert vars(Base)["run"] is not original
    patches.undo()

    assert vars(Base)["run"] is original


def test_method_wrapped_twice_is_wrapped_once(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)
    replacement = vars(Base)["run"]
    patches.wrap(Base, "run", noting)
    Patches().wrap(Base, "run", noting)

    assert vars(Base)["run"] is replacement
    Base().run("a")
    assert CALLS == ["run"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [pytest.param(Derived, "run", id="inherited"), pytest.param(Base, "walk", id="not there")],
)
def test_method_that_the_class_does_not_define_is_left_alone(patches: Patches, owner: type, name: str) -> None:
    patches.wrap(owner, name, noting)

    assert name not in vars(owner)


def test_method_wrapped_looks_like_the_original(patches: Patches) -> None:
    original = vars(Base)["run"]
    patches.wrap(Base, "run", noting)
    replacement = Base.run

    assert inspect.isfunction(replacement)
    assert inspect.ismethod(Base().run)
    assert (replacement.__name__, replacement.__qualname__, replacement.__module__, replacement.__doc__) == (
        "run",
        "Base.run",
        __name__,
        "Repeats.",
    )
    assert inspect.signature(replacement) == inspect.signature(original)
    assert inspect.signature(Base().run) == inspect.signature(original.__get__(Base()))
    assert inspect.unwrap(replacement) is original
    assert inspect.getsource(replacement) == inspect.getsource(original)


def test_method_wrapped_is_pickled_and_copied_by_name(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)
    instance = Base()
    for bound in (pickle.loads(pickle.dumps(instance.run)), copy.copy(instance.run), copy.deepcopy(instance.run)):
        assert bound("a") == "aa"
    assert pickle.loads(pickle.dumps(Base.run)) is Base.run
    assert copy.deepcopy(Base.run) is Base.run

    assert CALLS == ["run"] * 3


def test_method_pickled_while_wrapped_is_read_after_undo(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)
    pickled = pickle.dumps(Base().run)
    patches.undo()

    assert pickle.loads(pickled)("a") == "aa"
    assert CALLS == []


def test_method_kept_by_somebody_goes_on_after_undo(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)
    kept = Base().run
    patches.undo()

    assert kept("a") == "aa"


def test_method_that_raises_raises_the_same(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        Base().run("a", wrong=1)  # type: ignore[call-arg]


# Somebody else


def test_wrapper_of_somebody_over_ours_stays_and_passes_through(patches: Patches) -> None:
    original = vars(Base)["run"]
    patches.wrap(Base, "run", noting)
    ours = Base.run

    @functools.wraps(ours)
    def theirs(self: Base, text: str) -> str:
        return "<" + ours(self, text) + ">"

    Base.run = theirs  # type: ignore[method-assign, assignment]
    try:
        patches.undo()
        assert vars(Base)["run"] is theirs
        assert Base().run("a") == "<aa>"
    finally:
        Base.run = original  # type: ignore[method-assign]


def test_wrapper_of_somebody_over_ours_is_not_taken_for_ours(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)
    ours = Base.run

    @functools.wraps(ours)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    assert (is_ours(ours), is_ours(theirs), is_ours(len)) == (True, False, False)


def test_wrapper_of_somebody_below_ours_is_put_back(patches: Patches) -> None:
    original = vars(Base)["run"]

    def theirs(self: Base, text: str, **kwargs: Any) -> str:
        return "<" + original(self, text, **kwargs) + ">"

    Base.run = theirs  # type: ignore[method-assign, assignment]
    try:
        patches.wrap(Base, "run", noting)
        assert Base().run("a") == "<aa>"
        patches.undo()
        assert vars(Base)["run"] is theirs
    finally:
        Base.run = original  # type: ignore[method-assign]


# Class methods, properties, definitions


def test_class_method_wrapped_gets_the_class_that_was_called(patches: Patches) -> None:
    patches.wrap_classmethod(Base, "make", noting)

    assert (Base.make("a"), Derived.make()) == (("Base", "a"), ("Derived", "plain"))
    assert CALLS == ["make", "make"]
    assert isinstance(vars(Base)["make"], classmethod)
    assert (Base.make.__doc__, str(inspect.signature(Base.make))) == (
        "Makes.",
        "(kind: 'str' = 'plain') -> 'tuple[str, str]'",
    )
    assert pickle.loads(pickle.dumps(Derived.make))() == ("Derived", "plain")


def test_class_method_undone_is_the_original_by_identity(patches: Patches) -> None:
    original = vars(Base)["make"]
    for _ in range(2):
        patches.wrap_classmethod(Base, "make", noting)
        Base.make()
    patches.undo()

    assert (vars(Base)["make"] is original, CALLS) == (True, ["make", "make"])


@pytest.mark.parametrize("name", ["run", "helper", "size", "absent"])
def test_class_method_that_is_none_is_left_alone(patches: Patches, name: str) -> None:
    before = vars(Base).get(name)
    patches.wrap_classmethod(Base, name, noting)

    assert vars(Base).get(name) is before


def test_property_setter_wrapped_sees_what_is_set(patches: Patches) -> None:
    seen = []

    def make(original: Callable[[Any, int], None]) -> Callable[..., None]:
        def size(self: Any, value: int) -> None:
            seen.append(value)
            original(self, value)

        return size

    patches.wrap_property_setter(Base, "size", make)
    patches.wrap_property_setter(Base, "size", make)
    instance = Base()
    instance.size = 5

    assert (instance.size, seen) == (5, [5])
    assert Base.size.__doc__ == "How large."


def test_property_undone_is_the_original_by_identity(patches: Patches) -> None:
    original = vars(Base)["size"]
    patches.wrap_property_setter(Base, "size", noting)
    patches.undo()

    assert vars(Base)["size"] is original


@pytest.mark.parametrize("name", ["fixed", "run", "absent"])
def test_property_without_a_setter_is_left_alone(patches: Patches, name: str) -> None:
    before = vars(Base).get(name)
    patches.wrap_property_setter(Base, name, noting)

    assert vars(Base).get(name) is before


def test_method_defined_hides_the_inherited_one_until_undone(patches: Patches) -> None:
    def run(self: Derived, text: str) -> str:
        return super(Derived, self).run(text, times=1)

    patches.define(Derived, "run", run)
    assert (Derived().run("a"), Base().run("a")) == ("a", "aa")
    patches.undo()

    assert Derived().run("a") == "aa"


def test_method_defined_where_there_is_one_already_is_left_alone(patches: Patches) -> None:
    original = vars(Base)["run"]
    patches.define(Base, "run", lambda self: None)

    assert vars(Base)["run"] is original


# Undoing


def test_undo_of_several_puts_all_back(patches: Patches) -> None:
    patches.wrap(Base, "run", noting)
    patches.wrap_classmethod(Base, "make", noting)
    patches.wrap_property_setter(Base, "size", noting)
    patches.define(Derived, "run", lambda self: None)
    patches.undo()
    patches.undo()  # the fixture `untouched` looks at the rest

    assert Derived().run("a") == "aa"


def test_class_that_is_gone_is_neither_kept_alive_nor_missed() -> None:
    patches = Patches()

    def make() -> weakref.ref[type]:
        class Local:
            def run(self) -> None: ...

        patches.wrap(Local, "run", noting)
        return weakref.ref(Local)

    gone = make()
    gc.collect()

    assert gone() is None
    patches.undo()


def test_wrapping_from_many_threads_wraps_once(patches: Patches) -> None:
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        patches.wrap(Base, "run", noting)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Base().run("a")

    assert CALLS == ["run"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork_while_another_thread_patches_leaves_no_lock_held_in_the_child(patches: Patches) -> None:
    held, forked = threading.Event(), threading.Event()

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        held.set()
        assert forked.wait(60)
        return lambda self, text: "patched"

    class Other(Base):
        def run(self, text: str, *, times: int = 2) -> str:
            return text

    thread = threading.Thread(target=patches.wrap, args=(Base, "run", make))
    thread.start()
    assert held.wait(60)
    child = os.fork()
    if child == 0:
        worker = threading.Thread(target=patches.wrap, args=(Other, "run", lambda original: original), daemon=True)
        worker.start()
        worker.join(30)
        os._exit(worker.is_alive())
    forked.set()
    thread.join()

    assert os.waitpid(child, 0)[1] == 0
