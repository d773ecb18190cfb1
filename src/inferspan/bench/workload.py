"""What is asked of a target: requests from a file or made here, and when they come.

Generated text is drawn from the tokenizer's own vocabulary until it has exactly the number of tokens asked for,
special tokens included; each text is another one, so that nothing is measured that a cache of equal inputs gave. All
of it follows from the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TEXTS_MAX = 256
"""Different texts of one configuration; then they come again."""
WORDS = ("sea", "long", "waves", "met", "the", "old", "ship", "on", "its", "way", "home", "at", "dawn")
"""Where there is no tokenizer, or one with hardly any words of its own."""
_VOCABULARY_MAX = 4000
_WORDS_MIN = 20
_TRIES = 60


class WorkloadError(ValueError):
    """Requests that cannot be made or read; the text says why."""


def read_requests(path: Path) -> tuple[list[Any], str]:
    """The requests of a JSONL file, one a line, and the file's SHA-256.

    A line is a string, or an object with ``prompt``, ``text``, ``inputs`` or ``messages`` (a chat), of which that is
    taken; any other JSON is handed on as it is, to a callable that knows what to do with it.

    Raises:
        WorkloadError: the file cannot be read, has no requests, or a line is no JSON.
    """
    try:
        data = path.read_bytes()
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path} cannot be read: {error}") from error
    requests = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests.append(_request(json.loads(line)))
            except ValueError as error:
                raise WorkloadError(f"{path}, line {number}: no JSON ({error})") from None
    if not requests:
        raise WorkloadError(f"{path} has no requests: one a line, as a JSON string or an object with a prompt")
    return requests, hashlib.sha256(data).hexdigest()


def batches(requests: Sequence[Any], batch_size: int) -> Iterator[list[Any]]:
    """Batches without end, from the first request on and round again."""
    place = 0
    while True:
        yield [requests[(place + offset) % len(requests)] for offset in range(batch_size)]
        place = (place + batch_size) % len(requests)


def texts(count_tokens: Callable[[str], int], words: Sequence[str], tokens: int, count: int, seed: int) -> list[str]:
    """``count`` texts of exactly ``tokens`` tokens each.

    Raises:
        WorkloadError: this tokenizer makes no text of that length.
    """
    chance = random.Random(f"{seed} {tokens}")
    return [_text(count_tokens, words, tokens, chance) for _ in range(min(count, TEXTS_MAX))]


def words_of(tokenizer: Any, seed: int) -> list[str]:
    """Words of the tokenizer's vocabulary, as it writes them; a few plain ones where it has hardly any."""
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    random.Random(seed).shuffle(ids)
    words = {tokenizer.decode([token]).strip() for token in ids[:_VOCABULARY_MAX]}
    usable = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 1)
    return usable if len(usable) >= _WORDS_MIN else list(WORDS)


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Offsets of the arrivals of a Poisson process, in seconds, without end."""
    chance = random.Random(seed)
    at_s = 0.0
    while True:
        at_s += chance.expovariate(rate)
        yield at_s


def _text(count_tokens: Callable[[str], int], words: Sequence[str], tokens: int, chance: random.Random) -> str:
    for _ in range(_TRIES):
        chosen = [chance.choice(words)]
        while (have := count_tokens(" ".join(chosen))) < tokens:
            # a word has one token at least; so this never overshoots by many, and needs few rounds
            chosen.extend(chance.choice(words) for _ in range(max(1, (tokens - have) // 2)))
        while have > tokens and len(chosen) > 1:
            chosen.pop()
            have = count_tokens(" ".join(chosen))
        if have == tokens:
            return " ".join(chosen)
        filled = _filled(count_tokens, " ".join(chosen), tokens)
        if filled is not None:
            return filled
    raise WorkloadError(
        f"no text of exactly {tokens} tokens was found with this tokenizer: take another --input-tokens"
    )


def _filled(count_tokens: Callable[[str], int], text: str, tokens: int) -> str | None:
    """The text with single letters behind it, where that comes out even."""
    for _ in range(tokens):
        have = count_tokens(text)
        if have >= tokens:
            return text if have == tokens else None
        text += "a" if len(text) % 2 else " a"
    return None


def _request(line: Any) -> Any:
    if isinstance(line, dict):
        for name in ("prompt", "text", "inputs", "messages"):
            if name in line:
                return line[name]
    return line
