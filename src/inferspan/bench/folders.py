"""Texts without the folders of the paths in them: they hold names of users, customers and projects, and a result is
made to be shown to others. What is left of a path is its last part."""

from __future__ import annotations

import os
import re

_START = r"(?:file://+|(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?[\\/](?![\\/])|\\\\)"
_FOLDERS = re.compile(
    # in quotes there may be spaces in it; after a colon, it is no path but a URL if two slashes follow
    rf"""(?<=['"]){_START}[^'"\n]*[\\/](?=[^'"\n\\/])"""
    rf"""|(?<![\w/\\.~]){_START}(?:[^\\/\s'"<>|:;,=]+[\\/]+)*(?=[^\\/\s'"<>|:;,=])"""
)


def without_folders(text: str) -> str:
    """The text with each path in it that says where it begins (at the root, at home, here) cut to its last part."""
    return _FOLDERS.sub("", text)


def last_part(name: str) -> str:
    """Of a folder or file that is here; anything else as it is, but for paths in it."""
    return os.path.basename(os.path.abspath(name)) if os.path.exists(name) else without_folders(name)
