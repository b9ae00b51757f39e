"""Loads a model for `mlflow.pyfunc` and `mlflow models serve`. It lies beside each model in MLflow, and needs no Onward.

The weights stay in the store. Where they lie elsewhere, ONWARD_MODEL_FILES names the directory that `onward export` wrote.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

PLACE = "ONWARD_MODEL_FILES"
POINTER = "model.json"
_TOKENS = 64


class Writer:
    """Continues texts. `predict` takes a text, a list of texts, or a table with texts in its first column."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Each text with what the model writes after it. `params` are those of `generate`, such as max_new_tokens."""
        wanted = {"max_new_tokens": _TOKENS, "do_sample": False, **(params or {})}
        return [self._pipeline(text, **wanted)[0]["generated_text"] for text in _texts(model_input)]


def _texts(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if hasattr(given, "columns"):
        given = given[given.columns[0]].tolist()
    elif isinstance(given, dict):
        (given,) = given.values()
    return [str(text) for text in ([given] if isinstance(given, str) else given)]


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Writer:
    """MLflow calls this. Raises FileNotFoundError, and says how it is helped, if the weights are not on this machine."""
    import mlflow.transformers

    pointer = json.loads(Path(path, POINTER).read_bytes())
    place = os.environ.get(PLACE) or str(Path(pointer["store"], pointer["path"]))
    if not Path(place, "config.json").is_file():
        raise FileNotFoundError(
            f"The files of this model lie in {place} of the machine {pointer.get('host', 'that made it')}, and "
            "not on this one. "
            f"Export them there ({pointer['export']}), bring the directory here, and set {PLACE} to it; "
            "mlflow.transformers.load_model takes it as base_model_path."
        )
    return Writer(mlflow.transformers.load_model(path, base_model_path=place))
