"""Run as a process of its own, so that the real client asks the hub that its environment names: a base model imported.

python -m tests.support.hub_model '{"base": …, "revision": …, "store": …}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from storage.errors import OnwardError
from storage.store import Making, Request, Store
from tasks.corpus.reading.hub import remembered_in
from tasks.models import base


def main(wanted: dict[str, Any]) -> None:
    """Import it, and print where it is from and the digests of its parts, or the error.

    With `described`, its configuration alone is asked for and printed.
    """
    store = Store(Path(wanted["store"]))
    try:
        config = base.ModelConfig(base=wanted["base"], revision=wanted.get("revision", "main"))
        inputs = base.resolve_base(config, Path("/nowhere"), remembered=remembered_in(store.root))
        if wanted.get("described"):
            found = base.described(inputs)
            assert found is not None
            print(json.dumps({"config": json.loads(found[0]), "name": found[1]}))
            return
        made = store.ensure(Request(base, base.BaseConfig(), inputs), Making()).artifact
        parts = {name: part.digest for name, part in made.manifest.parts.items()}
        print(json.dumps({"origin": dict(inputs.origin), "parts": parts, "path": str(made.path)}))
    except OnwardError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
