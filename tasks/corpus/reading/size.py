"""About how much text a source has, without reading it: from the names, sizes and footers of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.corpus.reading.hub import Remembered
from tasks.corpus.reading.origins import Files, Hub, Installed, Origin
from tasks.corpus.reading.sources import IngestConfig, SourceConfig

LOOKED_INTO = 64
"""Files that are looked into. Where there are more, the others count as these do on average."""


@dataclass(frozen=True)
class SourceSize:
    """Bytes of text, and whether they were added up from every file."""

    bytes: int
    whole: bool


def size_of_source(
    config: IngestConfig, source: SourceConfig, base_directory: Path, remembered: Remembered | None = None
) -> SourceSize:
    """The estimated size of a source's text. Raises ConfigError and HubUnreachable, as its first slice would."""
    origin: Origin
    if config.python_docs:
        origin = Installed(config)
    elif source.hub is None:
        origin = Files(config, source, base_directory)
    else:
        origin = Hub(config, source.hub, None, remembered or Remembered(None))
    names = origin.names()
    most = 2 if isinstance(origin, Hub) else LOOKED_INTO  # a file of the hub may cost a request
    looked_into = names[:: max(1, len(names) // most)][:most] if len(names) > most else names
    size = sum(sum(origin.survey(name).estimates) for name in looked_into)
    return SourceSize(round(size * len(names) / len(looked_into)), len(looked_into) == len(names))
