"""Messages of an inference."""

from __future__ import annotations

from inferspan.core.messages import Content


def test_content_without_output_is_empty() -> None:
    content = Content([{"role": "user", "parts": []}])

    assert (content.input, content.output) == ([{"role": "user", "parts": []}], [])
