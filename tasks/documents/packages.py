"""The packages of the extra `documents`, and which of them are not here."""

from __future__ import annotations

from importlib.util import find_spec

MODULES = (
    "chardet",
    "lxml",
    "mwparserfromhell",
    "olefile",
    "pypdfium2",
    "python_calamine",
    "striprtf",
    "warcio",
)


def missing() -> tuple[str, ...]:
    """Modules that reading files needs and that are not installed."""
    return tuple(name for name in MODULES if find_spec(name) is None)
