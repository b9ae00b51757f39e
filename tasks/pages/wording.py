"""Numbers and names as a reader says them, on pages and in figures alike."""


def count_text(value: float) -> str:
    """A count: 400K, 1M, 1.5B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def size_text(value: float) -> str:
    """Bytes of text, by decimal units: 10.6 MB."""
    for step, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= step:
            return f"{value / step:.3g} {unit}"
    return f"{value:.0f} B"


def words(name: str) -> str:
    """A reason or rule by its name: gopher top 2 gram."""
    return name.replace("_", " ")


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, by the typographic minus; nothing that rounds to zero has one."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
