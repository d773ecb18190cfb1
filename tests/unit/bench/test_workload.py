"""Requests: of exact length, varied, from the seed alone; or from a file."""

from __future__ import annotations

import hashlib
from itertools import islice, pairwise
from pathlib import Path

import pytest

from inferspan.bench.workload import WORDS, WorkloadError, batches, poisson, read_requests, texts, words_of
from support import tiny


@pytest.mark.parametrize("tokens", [3, 16, 60])
@pytest.mark.parametrize("make", [tiny.word_tokenizer, tiny.text_tokenizer, tiny.seq2seq_tokenizer])
def test_texts_have_exactly_so_many_tokens(make: object, tokens: int) -> None:
    tokenizer = make()  # type: ignore[operator]

    found = texts(lambda text: len(tokenizer(text).input_ids), words_of(tokenizer, 0), tokens, 12, seed=1)

    assert [len(tokenizer(text).input_ids) for text in found] == [tokens] * 12


def test_texts_vary_and_come_from_the_seed() -> None:
    def made(seed: int) -> list[str]:
        return texts(lambda text: len(text.split()), WORDS, 20, 50, seed)

    assert len(set(made(1))) == 50
    assert made(1) == made(1)
    assert made(1) != made(2)


def test_texts_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(WorkloadError, match="no text of exactly 5 tokens"):
        texts(lambda text: 2 * len(text.split()), ["word"], 5, 1, seed=0)


def test_batches_go_round() -> None:
    assert list(islice(batches("abc", 2), 3)) == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_batches_larger_than_the_requests_repeat_them() -> None:
    assert list(islice(batches("ab", 3), 2)) == [["a", "b", "a"], ["b", "a", "b"]]


def test_arrivals_have_the_rate_and_the_scatter_of_a_poisson_process() -> None:
    at_s = list(islice(poisson(50.0, seed=3), 20000))
    gaps = [after - before for before, after in pairwise(at_s)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)

    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert variance == pytest.approx(mean**2, rel=0.1)
    assert at_s == list(islice(poisson(50.0, seed=3), 20000))


def test_requests_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(
        '"plain"\n{"prompt": "a prompt", "id": 1}\n\n{"messages": [{"role": "user"}]}\n{"other": 5}\n[1, 2]\n'
    )

    found, digest = read_requests(path)

    assert found == ["plain", "a prompt", [{"role": "user"}], {"other": 5}, [1, 2]]
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(None, "cannot be read", id="absent"),
        pytest.param("\n\n", "has no requests", id="empty"),
        pytest.param('"one"\nnot json\n', "line 2: no JSON", id="no-json"),
    ],
)
def test_file_without_requests_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "requests.jsonl"
    if text is not None:
        path.write_text(text)

    with pytest.raises(WorkloadError, match=said):
        read_requests(path)
