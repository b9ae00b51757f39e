"""Text put together from blocks: paragraphs, headings, items of lists, tables and code, in the manner of Markdown."""

from __future__ import annotations

from tasks.documents.tidy import table

_UP = str.maketrans("0123456789+-=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ")
_DOWN = str.maketrans("0123456789+-=()", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎")


class Blocks:
    """Collects pieces of text into blocks. Spaces collapse, except in code; `\\v` in a piece is a line end that stays."""

    def __init__(self) -> None:
        self._blocks: list[tuple[str, bool]] = []
        self._pieces: list[str] = []
        self._item = False

    def add(self, text: str | None) -> None:
        if text:
            self._pieces.append(text)

    def end(self, prefix: str = "", *, tight: bool = False) -> bool:
        """End the block, if there is one. `prefix`: what stands before its first line; `tight`: no blank line before it, if
        the block before it is an item too.
        """
        if not self._pieces:
            return False
        text = "".join(self._pieces)
        self._pieces.clear()
        lines = (
            [" ".join(line.split()) for line in text.split("\v")]
            if "\v" in text
            else [" ".join(text.split())]
        )
        kept = [line for line in lines if line]
        if kept:
            indent = "" if "#" in prefix else " " * len(prefix)
            tight = tight and (self._item or not prefix)
            self._blocks.append((prefix + f"\n{indent}".join(kept), tight))
            self._item = bool(prefix) and "#" not in prefix
        return bool(kept)

    def heading(self, level: int) -> None:
        self.end(f"{'#' * min(max(level, 1), 6)} ")

    def table(self, rows: list[list[str]]) -> None:
        self.end()
        if text := table(rows):
            self._blocks.append((text, False))
            self._item = False

    def code(self, text: str, language: str = "") -> None:
        self.end()
        text = text.expandtabs(4).strip("\n")
        if text.strip():
            fence = "````" if "```" in text else "```"
            self._blocks.append((f"{fence}{language}\n{text}\n{fence}", False))
            self._item = False

    def text(self) -> str:
        self.end()
        parts: list[str] = []
        for block, tight in self._blocks:
            if parts:
                parts.append("\n" if tight else "\n\n")
            parts.append(block)
        return "".join(parts)


def raised(text: str) -> str:
    """A superscript: in Unicode's letters where it is a number, else as it is."""
    return text.translate(_UP) if text and all(letter in "0123456789+-=()n" for letter in text) else text


def lowered(text: str) -> str:
    """A subscript, likewise."""
    return text.translate(_DOWN) if text and all(letter in "0123456789+-=()" for letter in text) else text
