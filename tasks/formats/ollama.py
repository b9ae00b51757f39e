"""The Modelfile with which Ollama takes a GGUF file."""

from __future__ import annotations

from pathlib import Path

from tasks.models.source import CONFIG, chat_template, configuration


def modelfile(export: Path, file: str) -> str:
    """The text of a Modelfile beside the GGUF file called `file`. `export`: the directory that it was made from.

    A model without a chat template continues the text that it is given. One with a template is asked as the file itself
    says: Ollama reads it there.
    """
    config = configuration((export / CONFIG).read_bytes(), str(export / CONFIG))
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {min(config.max_position_embeddings, _MOST)}"]
    if chat_template(export) is None:
        lines.append('TEMPLATE "{{ .Prompt }}"')
    return "\n".join(lines) + "\n"


_MOST = 32_768
"""Positions that Ollama holds memory for, at most; `PARAMETER num_ctx` is there to be edited."""
