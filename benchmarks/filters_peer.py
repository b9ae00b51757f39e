"""datatrove's verdicts on documents. filters_agreement.py calls this in the environment of the peers.

    python benchmarks/filters_peer.py DOCUMENTS.parquet VERDICTS.parquet MODEL.ftz

DOCUMENTS has `name` and `text`. VERDICTS has the same order. For each filter it has the verdict on the unchanged
text (empty: kept, otherwise datatrove's reason) and the filter's seconds. It also has `chain` (the first of the
four filters that drops the text, in FineWeb's order, with C4 editing it), `c4_text` (a kept text as C4 leaves it)
and `pii_text`.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.formatters.pii import PIIFormatter
from datatrove.utils import text as peer_text
from fasttext.FastText import _FastText

CHAIN = ("gopher_repetition", "gopher_quality", "c4", "fineweb")


def filters(model: str) -> dict[str, Any]:
    """Each filter as FineWeb uses it; also C4 with the rule that FineWeb leaves out, and C4 without its
    curly-bracket rule.
    """
    language = LanguageFilter(["en"])
    language.model._model = _FastText(model)  # the same file for both sides: no download
    return {
        "language": language,
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
        "c4_end_punctuation": C4QualityFilter(),
        "c4_with_curly_brackets": C4QualityFilter(filter_no_terminal_punct=False, filter_curly_bracket=False),
    }


def verdict(one: Any, document: Document) -> str:
    """Empty if the text is kept. An exception of the filter is a verdict too (datatrove stops there)."""
    try:
        said = one.filter(document)
    except Exception as error:
        return f"error: {type(error).__name__}"
    if isinstance(said, tuple):
        return "" if said[0] else said[1]
    return "" if said else "dropped"


def main(documents: str, verdicts: str, model: str) -> None:
    table = pq.read_table(documents)
    asked = filters(model)
    pii = PIIFormatter()
    columns: dict[str, list] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for name, text in zip(table["name"].to_pylist(), table["text"].to_pylist(), strict=True):
        columns["name"].append(name)
        for key, one in asked.items():
            document = Document(text=text, id=name)
            peer_text.split_into_parts.cache_clear()  # each filter pays for its own word splitting
            began = time.process_time()
            columns[key].append(verdict(one, document))
            seconds[key] += time.process_time() - began
            if key == "c4":
                columns["c4_text"].append(document.text if not columns[key][-1] else None)
        began = time.process_time()
        columns["pii_text"].append(pii.format(text))
        seconds["pii"] += time.process_time() - began
        document, dropped = Document(text=text, id=name), ""
        peer_text.split_into_parts.cache_clear()
        began = time.process_time()
        for key in CHAIN:  # here the words are shared, as in datatrove's own pipeline
            said = verdict(asked[key], document)
            if said:
                dropped = f"{key}: {said}"
                break
        seconds["chain"] += time.process_time() - began
        columns["chain"].append(dropped)
    made = pa.table(columns).replace_schema_metadata({key: str(value) for key, value in seconds.items()})
    pq.write_table(made, verdicts, compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
