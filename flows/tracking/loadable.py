"""The files by which MLflow itself loads a model: `mlflow.transformers`, `mlflow.pyfunc` and `mlflow models serve`.

The weights are not among them. `local_base_model_path`, an entry of MLflow's own flavor, names where they lie in the store;
the tokenizer lies beside it, as the flavor wants it (mlflow/transformers/model_io.py of 3.17).
"""

from __future__ import annotations

import json
import platform
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from flows.tracking import onward_model

FORMAT = "1"
"""Version of these files: the tag LOADS of a model that has them."""
LOADS = "loads"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_CODE = "code"
_LIBRARIES = ("mlflow", "torch", "transformers")
_TEXT = json.dumps([{"type": "string", "required": True}])
_PARAMS = json.dumps(
    [
        {"name": "max_new_tokens", "type": "long", "default": 64, "shape": None},
        {"name": "do_sample", "type": "boolean", "default": False, "shape": None},
        {"name": "temperature", "type": "double", "default": 1.0, "shape": None},
    ]
)


def write_loadable(directory: Path, export: Path, model_id: str, facts: Mapping[str, str]) -> bool:
    """Write MLmodel and what it names into a directory. `export`: the model in the store; `facts` stand in its metadata.

    Returns False, and writes nothing, for what `from_pretrained` does not load.
    """
    try:
        config = json.loads((export / "config.json").read_bytes())
        architecture = str((config.get("architectures") or [""])[0])
    except (OSError, ValueError):
        return False
    if not architecture or not (export / "tokenizer.json").is_file():
        return False
    components = directory / "components" / "tokenizer"
    components.mkdir(parents=True)
    for name in _TOKENIZER:
        if (export / name).is_file():
            shutil.copyfile(export / name, components / name)
    code = directory / _CODE
    code.mkdir()
    shutil.copyfile(str(onward_model.__file__), code / "onward_model.py")
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    requirements = "".join(f"{name}=={version.partition('+')[0]}\n" for name, version in versions.items())
    (directory / "requirements.txt").write_text(requirements, encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "build_dependencies": ["pip"],
        "dependencies": ["-r requirements.txt"],
    }
    (directory / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False), encoding="utf-8")
    described: dict[str, Any] = {
        "flavors": {
            "python_function": {
                "loader_module": "onward_model",
                "code": _CODE,
                "python_version": platform.python_version(),
                "env": {"virtualenv": "python_env.yaml"},
            },
            "transformers": {
                "task": "text-generation",
                "instance_type": "TextGenerationPipeline",
                "framework": "pt",
                "pipeline_model_type": architecture,
                "local_base_model_path": str(export),
                "components": ["tokenizer"],
                "tokenizer_type": "PreTrainedTokenizerFast",
                "transformers_version": versions["transformers"],
                "code": None,
            },
        },
        "metadata": dict(facts),
        "mlflow_version": versions["mlflow"],
        "model_id": model_id,
        "model_uuid": uuid.uuid4().hex,
        "signature": {"inputs": _TEXT, "outputs": _TEXT, "params": _PARAMS},
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    (directory / "MLmodel").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    return True
