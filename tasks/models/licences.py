"""What the hub calls a licence: it takes the identifiers that it knows, and for another one `other` with a name."""

from __future__ import annotations

import re

OTHER = "other"
_IDENTIFIERS = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
    cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
    lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
    ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""
"""As it takes them in May 2026: huggingface_hub's issue 4218 lists them."""
_OF_THE_HUB = frozenset(_IDENTIFIERS.split())


def hub_licence(words: str) -> tuple[str, str | None]:
    """The identifier of a licence on the hub, and, if that is `other`, a name of the form that identifiers have.

    Spelling decides nothing: `Apache 2.0` is apache-2.0.
    """
    given = re.sub(r"[\s_]+", "-", words.strip().lower())
    if given in _OF_THE_HUB:
        return given, None
    name = re.sub(r"[^a-z0-9.]+", "-", given)
    name = re.sub(r"[.-]*-[.-]*", "-", re.sub(r"\.{2,}", ".", name)).strip("-.")
    return OTHER, None if name in ("", OTHER) else name
