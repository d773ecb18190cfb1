"""Programs as rows of choices: drawn at random, printed, and made as plain as they can be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

Choices = Mapping[str, Any]

PLAIN_SHARE = 0.6
"""How often a choice is the plain one, so that a program is odd in a few ways at once, not in all of them."""

VARIED = ("model", "rows", "task")
"""Choices of which none is plainer than another."""


@dataclass(frozen=True)
class Family:
    """Programs of one kind. ``axes``: what there is to choose, of each the plain choice first."""

    name: str
    axes: Mapping[str, tuple[Any, ...]]
    allows: Callable[[Choices], bool]
    make: Callable[[Choices], Any]
    share: int = 1

    def plain(self) -> dict[str, Any]:
        return {name: values[0] for name, values in self.axes.items()}


@dataclass(frozen=True)
class Program:
    """One program. Its text holds only what is not plain, and is enough to run it again."""

    family: Family
    choices: Choices

    def __str__(self) -> str:
        plain = self.family.plain()
        odd = {name: value for name, value in self.choices.items() if value != plain[name]}
        return json.dumps({"family": self.family.name, **odd})


def draw(random: Random, families: Mapping[str, Family]) -> Program:
    """A random program that its family allows."""
    family = random.choice([family for family in families.values() for _ in range(family.share)])
    while True:
        choices = {
            name: values[0] if random.random() < PLAIN_SHARE and name not in VARIED else random.choice(values)
            for name, values in family.axes.items()
        }
        if family.allows(choices):
            return Program(family, choices)


def parse(text: str, families: Mapping[str, Family]) -> Program:
    """The program that printed itself as ``text``."""
    odd = json.loads(text)
    family = families[odd.pop("family")]
    return Program(family, {**family.plain(), **odd})


def shrink(program: Program, still_fails: Callable[[Program], bool]) -> Program:
    """The plainest program that still fails, by making one choice plain at a time."""
    plain = program.family.plain()
    smaller = True
    while smaller:
        smaller = False
        for name, value in program.choices.items():
            if value == plain[name]:
                continue
            trial = Program(program.family, {**program.choices, name: plain[name]})
            if program.family.allows(trial.choices) and still_fails(trial):
                program, smaller = trial, True
    return program
