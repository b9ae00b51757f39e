"""The files of a base model as somebody else wrote them: what an import reads of them, and what it refuses unread.

A directory is foreign: its JSON may name files elsewhere, code, or another model, and its weights may be cut off or
hold no numbers. Everything that an import reads lies in the directory itself and has a name of `USED`, so it is in the
base's digest. transformers sees it only through `as_read`: a directory of links to these files, with a configuration
that names neither code nor other files.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from storage.errors import ConfigError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
USED = (
    CONFIG,
    ADAPTER,
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
"""Names of the files that an import may read, or that decide whether there is one."""
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz")
_NAMES = ("_file", "_files", "_path")
"""Ends of the entries of tokenizer_config.json that name files."""
DROPPED_NAMES = ("name_or_path", "tokenizer_file", "special_tokens_map_file")
"""Entries of tokenizer_config.json that name where a tokenizer once lay; no import keeps them."""
_NOT_READ = (
    *("auto_map", "custom_pipelines", "custom_generate", "transformers_weights", "fusion_config"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
    *("distributed_config", "kernel_config", "use_kernels", "name_or_path", "_name_or_path"),
)
"""Entries of config.json by which transformers would load code, kernels or files that are not the model's own."""


def files_of(directory: Path) -> list[Path]:
    """The files of `USED` in a directory, by name.

    Raises ConfigError for a link that leads out of the directory. The snapshots of the hub's client are such links
    into the cache of their own repository; they are taken.
    """
    found = sorted({path for pattern in USED for path in directory.glob(pattern)})
    root = directory.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        allowed.append(root.parent.parent / "blobs")
    for path in found:
        target = Path(os.path.realpath(path))
        if path.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
            raise ConfigError(
                f"model.base: {path} is a link that leads out of the model's directory, and nothing outside is read; "
                "put the file itself there"
            )
        if not path.is_file():
            raise ConfigError(f"model.base: {path} is no file; put the file itself there, or remove it")
    return found


def chat_template(directory: Path) -> str | None:
    """A model's chat template, from its own file or from the tokenizer's configuration; None without any.

    Raises ConfigError if the configuration holds something else than an object.
    """
    if (path := directory / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    found = read_object(directory / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file. Raises ConfigError if it holds something else."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(path, error) from error
    return object_of(raw, str(path))


def object_of(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object in the bytes of the file `name`. Raises ConfigError if they hold something else, or NaN."""

    def no_number(word: str) -> Any:
        raise ConfigError(f"model.base: {name} holds {word} where a number should be; mend it")

    try:
        found = json.loads(raw, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model.base: {name} is no JSON ({short(error)}); fetch it again") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"model.base: {name} holds {json.dumps(found)[:20]} where a JSON object should be; fetch it again"
        )
    return found


def unreadable(path: Path, error: OSError) -> ConfigError:
    """The error for a file of a base that the system does not let us read."""
    return ConfigError(f"model.base: {path} cannot be read ({error.strerror or error}); make it readable")


def configuration(raw: bytes, name: str) -> Any:
    """The transformers configuration in the bytes of a config.json called `name`.

    Raises ConfigError if transformers does not know its kind without remote code, or if it describes a quantised
    model.
    """
    from transformers import AutoConfig

    values = plain_configuration(object_of(raw, name), name)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / CONFIG).write_text(json.dumps(values), encoding="utf-8")
        try:
            return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except (
            Exception
        ) as error:  # each class of configuration has checks of its own, with errors of every kind
            said = short(error).replace(directory, name)
            raise ConfigError(
                f"model.base: transformers cannot read {name} without remote code ({said}); choose a base of an "
                "architecture that transformers itself has"
            ) from error


def plain_configuration(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A config.json without the entries that name code or other files. Raises ConfigError if the model is quantised."""
    quantised = values.get("quantization_config") or values.get("compression_config")
    if quantised:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        if isinstance(quantised, dict) and how is None:
            how = next((name for name in ("load_in_4bit", "load_in_8bit") if quantised.get(name)), None)
        raise ConfigError(
            f"model.base: {name} says that the model is quantised ({how or 'quantization_config'}), and rounded "
            "weights cannot be trained; choose the model that it was made from"
        )
    return {key: value for key, value in values.items() if key not in _NOT_READ}


def check_files(directory: Path) -> None:
    """Refuse what the files of a directory show without reading its weights. Reads JSON and the heads of weights.

    Raises ConfigError for an adapter, for weights that are no whole safetensors, quantised, or not the directory's own,
    and for JSON files that hold no object.
    """
    names = {path.name for path in files_of(directory)}
    if ADAPTER in names:
        raise ConfigError(
            f"model.base: {directory} holds an adapter ({ADAPTER}), which an import would leave out; merge it into its "
            "model (peft: merge_and_unload, then save_pretrained), or remove it"
        )
    if CONFIG not in names:
        raise ConfigError(
            f"model.base: {directory} holds no {CONFIG}, so no model that transformers loads; save the model there with "
            "save_pretrained"
        )
    values = read_object(directory / CONFIG)
    plain_configuration(values, str(directory / CONFIG))
    if values.get("transformers_weights") not in (None, WEIGHTS, INDEX):
        raise ConfigError(
            f"model.base: {directory / CONFIG} names other weights (transformers_weights); call their file {WEIGHTS}, and "
            "remove that entry"
        )
    for name in ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"):
        read_object(directory / name)
    _check_names(directory / "tokenizer_config.json")
    for path in _weights_of(directory, names):
        _check_head(path)


def _check_names(path: Path) -> None:
    """Refuse a tokenizer's configuration that names files elsewhere, except entries that an import drops."""
    for key, value in read_object(path).items():
        if key in DROPPED_NAMES or not key.endswith(_NAMES):
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and (one != Path(one).name or "\\" in one):
                raise ConfigError(
                    f"model.base: {path} names a file outside the model's directory ({key}: {one}), and nothing outside "
                    "is read; put the file itself there, and remove that entry"
                )


def _weights_of(directory: Path, names: set[str]) -> list[Path]:
    """The files of weights that transformers would read. Raises ConfigError unless they are plain files of `directory`."""
    if INDEX not in names:
        if WEIGHTS not in names:
            raise ConfigError(f"model.base: {directory} holds no {WEIGHTS}{_instead_of_weights(directory)}")
        return [directory / WEIGHTS]
    mapped = read_object(directory / INDEX).get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(one, str) for one in mapped.values()):
        raise ConfigError(
            f"model.base: {directory / INDEX} has no weight_map of tensors to files; fetch it again, or remove it if "
            f"{WEIGHTS} holds all"
        )
    shards = sorted(set(mapped.values()))
    for shard in shards:
        if shard != Path(shard).name or "\\" in shard or not shard.endswith(".safetensors"):
            raise ConfigError(
                f"model.base: {directory / INDEX} names {shard}, and only *.safetensors beside it are read; put the "
                "weights themselves there"
            )
        if shard not in names:
            raise ConfigError(
                f"model.base: {directory / INDEX} names {shard}, which is not there; fetch it, too"
            )
    if WEIGHTS in names and shards != [WEIGHTS]:
        raise ConfigError(
            f"model.base: {directory} holds both {WEIGHTS} and an {INDEX} of other files; remove what is not the model"
        )
    return [directory / shard for shard in shards]


def _instead_of_weights(directory: Path) -> str:
    others = sorted(path.name for path in directory.iterdir() if path.suffix in _OTHER_WEIGHTS)
    found = f", only {others[0]}" if others else ""
    if others and others[0].endswith((".safetensors", ".gguf")):
        return (
            f"{found}; convert it with transformers to {WEIGHTS}, or choose the model that it was made from"
        )
    code = ": pickled weights can run code and are not read" if found else ""
    return f"{found}{code}; convert it once with model.save_pretrained(directory), or name a revision that has safetensors"


def _check_head(path: Path) -> None:
    """Refuse a file that is no whole safetensors file by its head, or that holds values of fewer than 16 bits."""
    with path.open("rb") as file:
        begin = file.read(40)
    if begin.startswith(b"version https://git-lfs"):
        raise ConfigError(
            f"model.base: {path} is a pointer of Git LFS, not the weights; fetch them with git lfs pull"
        )
    try:
        with safe_open(path, framework="numpy") as weights:
            kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(
            f"model.base: {path} is no whole safetensors file ({short(error)}); fetch it again"
        ) from error
    for name, kind in kinds.items():
        if kind == "F4" or kind.startswith(("F6_", "F8_")):
            raise ConfigError(
                f"model.base: {path} holds quantised weights ({name} is {kind}), and rounded weights cannot be trained; "
                "choose the model that it was made from"
            )


@contextmanager
def as_read(directory: Path, beside: Path) -> Iterator[Path]:
    """`directory` as transformers may see it: links to its files, and plain configurations, in a directory in `beside`."""
    with tempfile.TemporaryDirectory(dir=beside) as name:
        staged = Path(name)
        for path in files_of(directory):
            if path.name in (CONFIG, ADAPTER, "generation_config.json", "tokenizer_config.json"):
                continue
            (staged / path.name).symlink_to(path.resolve())
        values = plain_configuration(read_object(directory / CONFIG), str(directory / CONFIG))
        (staged / CONFIG).write_text(json.dumps(values), encoding="utf-8")
        facts = plain_tokenizer(read_object(directory / "tokenizer_config.json"))
        if facts:
            (staged / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
        yield staged


def plain_tokenizer(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json without the entries that name code or files."""
    return {key: value for key, value in facts.items() if key != "auto_map" and not key.endswith(_NAMES)}


def short(error: BaseException) -> str:
    """An error's class and the first line of its text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__
