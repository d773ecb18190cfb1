"""Prompts and completions as role and text."""

from __future__ import annotations

from inferspan.core.messages import Content


def test_content_without_output_is_empty() -> None:
    content = Content([("user", "a")])

    assert (content.input, content.output) == ([("user", "a")], [])
