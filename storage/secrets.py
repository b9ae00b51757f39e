"""Removes secrets from text, by one set of rules for the log, the pages, MLflow and the doctor.

The rules remove too much rather than too little: the end of the user part in an address is ambiguous if the password
holds unusual characters.
"""

from __future__ import annotations

import re

_RULES = (
    # First a user with a password, which may hold any character but a space; then a user alone, which may be a token.
    (re.compile(r"(?<=//)[^\s/@:]*:\S*@"), ""),
    (re.compile(r"(?<=//)[^\s/@]+@"), ""),
    (re.compile(r"(?i)\b(password|passwd|pwd|token)=[^&\s]*"), r"\1=…"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_…"),
)


def without_secrets(text: str) -> str:
    """The text without users and passwords in its addresses. Values of `password=` and the like, and tokens, are masked."""
    for pattern, blot in _RULES:
        text = pattern.sub(blot, text)
    return text
