"""Numbers on the command line: types for ``argparse``, which say what is wrong with a number."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def positive_list(text: str) -> list[int]:
    return list(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def not_below_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def above_zero(text: str) -> float:
    value = not_below_zero(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value
