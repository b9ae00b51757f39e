"""What transformers makes of models' directories: `python -m tests.support.old_reader PROMPT DIRECTORY…`.

Prints a line of JSON for each: the version, ids of the prompt by AutoTokenizer, and the logits of some ids, or the error.
The version is that of the process: `PYTHONPATH` may hold another than the project's.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def read(directory: str, prompt: str) -> dict[str, Any]:
    """ids of the prompt, and logits [last position, words] of the ids 3 to 42."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory).float().eval()
        with torch.no_grad():
            logits = model(torch.arange(3, 43)[None], use_cache=False).logits[0, -1]
        return {"ids": tokenizer(prompt).input_ids, "logits": logits.tolist()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    """Read each directory."""
    import torch
    import transformers

    torch.set_num_threads(1)
    prompt, *directories = sys.argv[1:]
    for directory in directories:
        found = read(directory, prompt)
        sys.stdout.write(json.dumps({"version": transformers.__version__, **found}) + "\n")


if __name__ == "__main__":
    main()
