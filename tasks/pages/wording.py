"""Readable numbers and names, for pages and figures."""

from storage.counts import round_to


def size_text(value: float) -> str:
    """Bytes of text, by decimal units: 10.6 MB."""
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if round_to(value, 3) >= step:
            return f"{round_to(value, 3) / step:.3g} {unit}"
    return f"{value:.0f} B"


def words(name: str) -> str:
    """The name of a reason or rule in words: gopher top 2 gram."""
    return name.replace("_", " ")


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign; the minus is the typographic one. A number that rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
