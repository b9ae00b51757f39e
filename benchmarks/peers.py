"""A separate environment for peers, so that Onward needs none of their packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

CORPUS = (
    "datatrove==0.10.1",
    "datasets==5.2.0",
    "tokenizers==0.23.3",
    "pyarrow==25.0.1",
    "spacy==3.8.18",
    "nltk==3.10.4",
    "xxhash==3.8.2",
    "tldextract==5.4.0",
    "orjson==3.13.0",
)


def environment(requirements: tuple[str, ...] = CORPUS) -> Path:
    """The Python interpreter of a virtual environment with these packages. It is made once and kept in the user's
    cache.
    """
    name = hashlib.sha256(" ".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onward-peers" / name
    python = home / "bin" / "python"
    if not (home / ".whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        (home / ".whole").touch()
    return python
