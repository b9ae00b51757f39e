"""Puts into an export what other readers need: the files of a base's part `readers` (tasks/models/readers.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def add_readers(export: Path, readers: Path | None) -> None:
    """Add the entries of `readers`/config.json to the export's, and copy all other files. None: nothing is to be added."""
    if readers is None:
        return
    for path in sorted(readers.iterdir()):
        if path.name != CONFIG:
            shutil.copyfile(path, export / path.name)
            continue
        values = json.loads((export / CONFIG).read_bytes()) | json.loads(path.read_bytes())
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (export / CONFIG).write_text(text, encoding="utf-8")
