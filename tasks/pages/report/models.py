"""The models on the page: what they are, and what they write."""

from __future__ import annotations

from typing import Any

from tasks.pages.blocks import Block, Cell, Heading, Table, Text
from tasks.pages.wording import count_text

Json = dict[str, Any]


def models(facts: Json) -> list[Block]:
    """Where each model lies, and what was seen and computed for it."""
    rows = tuple(
        (
            Cell(model["name"]),
            Cell(model["path"]),
            Cell(model["digest"][:16]),
            Cell(count_text(model["tokens"])),
            Cell(f"{model['seen']:,}"),
            Cell(f"{model['computed']:,}"),
        )
        for model in facts["models"]
    )
    head = ("model", "artifact", "digest of export", "budget", "tokens seen", "tokens computed")
    note = (
        "Seen: targets that this model was trained on. Computed: what its trunk and branch cost; a branch's tokens are "
        f"computed again by the trunk. All segments together: {facts['computed']:,} tokens."
    )
    return [Heading(2, "The models"), Table(head, rows, 3), Text(note, "note")]


def samples(facts: Json) -> list[Block]:
    """What each model writes after the same prompts, side by side."""
    if not facts["samples"]:
        return []
    names = [model["name"] for model in facts["models"]]
    rows: list[tuple[Cell, ...]] = []
    for row in facts["samples"]:
        cells = [Cell(_plain(row["models"][name]) if name in row["models"] else "–") for name in names]
        rows.append((Cell(row["prompt"], below=row["decoding"]), *cells))
    note = (
        "Greedy: the likeliest token at each place. Sampled: drawn by the same random numbers for every model. Cut off "
        "where the model ends the text, or at the number of tokens asked for."
    )
    return [
        Heading(2, "What the models write"),
        Table(("prompt", *names), tuple(rows), notes=len(names)),
        Text(note, "note"),
    ]


def _plain(text: str) -> str:
    """On one line, as a table wants it; what cannot be printed is replaced."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return "… " + " ".join(shown.split()) + " …"
