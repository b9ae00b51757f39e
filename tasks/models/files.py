"""The files of a model: import one, write a new one, and read facts without loading it.

No path, clock or library version is in any byte that is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from storage.errors import BadInput, ConfigError
from storage.manifest import FileEntry, part_of
from tasks.corpus.tokens.vocabulary import TOKENIZER_FILES, load_vocabulary, token_text, tokenizer_directory
from tasks.models.source import (
    CONFIG,
    DROPPED_NAMES,
    WEIGHTS,
    as_read,
    check_files,
    configuration,
    read_object,
    short,
)
from tasks.models.weights import check_weights, disk_errors
from tasks.training.attention import register
from tasks.training.model import attention_of, causal_class, check_documents_apart, halves

_NOT_EXPORTED = (
    "transformers_version",
    "_name_or_path",
    "auto_map",
)  # volatile, or the name of foreign code
_TOKENIZER_SOURCES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_LEAST_IDS = 0.9
"""Share of the model's words that its own tokenizer has at least. Embeddings are padded, but by less than this."""
_PROBES = (
    "Once upon a time, there was a café; it cost $12,345.67 (naïve).",
    "def f(x):\n\treturn  x ** 2   # 漢字 🙂\r\n\n",
    " leading and trailing ",
)


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model, from its files."""

    parameters: int
    """Number of values in model.safetensors. Tied weights count once."""
    layers: int
    hidden_size: int
    max_positions: int | None
    """None if positions are unlimited."""
    vocabulary: int
    """Rows of the embedding. All of the tokenizer's ids are below it."""
    eot: int
    architecture: str
    tokenizer: str
    """Digest of the part `tokenizer`."""


def model_facts(export: Path) -> ModelFacts:
    """Facts of an export. Raises ConfigError if a file is missing or the tokenizer has no end-of-text."""
    config = configuration((export / CONFIG).read_bytes(), str(export / CONFIG))
    parameters = 0
    with safe_open(export / WEIGHTS, framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 — not a mapping
            parameters += math.prod(weights.get_slice(name).get_shape())
    positions = getattr(config, "max_position_embeddings", None)
    return ModelFacts(
        parameters=parameters,
        layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        max_positions=int(positions) if positions else None,
        vocabulary=int(config.vocab_size),
        eot=end_of_text(export),
        architecture=str((config.architectures or [config.model_type])[0]),
        tokenizer=tokenizer_digest(export),
    )


def end_of_text(export: Path) -> int:
    """Id of the end-of-text token of an export's tokenizer. Raises ConfigError if there is none."""
    try:
        return load_vocabulary(export).eot
    except BadInput as error:
        raise ConfigError(str(error)) from error


def tokenizer_digest(export: Path) -> str:
    """The digest that the part `tokenizer` has in an artifact with these files in its directory `export`."""
    entries = []
    for name in TOKENIZER_FILES:
        path = export / name
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(FileEntry(f"export/{name}", path.stat().st_size, sha256))
    return part_of(entries).digest


def import_model(directory: Path, export: Path) -> list[str]:
    """Write the model in `directory` as an export into the empty directory `export`. Returns warnings for the user.

    Raises ConfigError for weights that are not safetensors, for a model that needs remote code or lacks weights, and
    for a tokenizer that is missing, has no end-of-text or has more ids than the model.
    """
    check_files(directory)
    with as_read(directory, export.parent) as staged:
        try:
            config = configuration((staged / CONFIG).read_bytes(), str(staged / CONFIG))
            maker = causal_class(config)
            _check_pad(config, staged)
            eot, bos = _import_tokenizer(directory, staged, config, export)
            _check_vocabulary(export, int(config.vocab_size))
            model, unused = _loaded(maker, config, staged)
        except ConfigError as error:
            said = str(error).replace(str(staged), str(directory)).removeprefix("model.base: ")
            raise ConfigError(f"model.base: {said}") from error
    _write_model(model, export, eot, bos)
    rows, ids = int(model.config.vocab_size), load_vocabulary(export).size
    warnings = []
    if unused:
        warnings.append(f"Weights of the base that its architecture does not use: {', '.join(unused[:5])}.")
    if ids < rows * _LEAST_IDS:
        warnings.append(
            f"The base's tokenizer has {ids:,} ids, but the model {rows:,} words: is it the model's own tokenizer?"
        )
    return warnings


def _loaded(maker: Any, config: Any, staged: Path) -> tuple[Any, list[str]]:
    """The model, and the weights that it does not use. Raises ConfigError unless it is whole, and can be trained."""
    try:
        with _quiet():
            model, facts = maker.from_pretrained(
                staged,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of any model's own code
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's, not the model's
        raise ConfigError(
            f"model.base: {staged} cannot be loaded as a {maker.__name__} ({short(error)}); fetch it again, or choose "
            "another base"
        ) from error
    unused = sorted(map(str, facts["unexpected_keys"]))
    check_weights(model, facts, staged)
    _check_trainable(model)
    return model, unused


def _check_trainable(model: Any) -> None:
    """The trainer's own check, on the weights themselves."""
    attention = model.config._attn_implementation
    register(False)
    model.set_attn_implementation(attention_of(type(model), model.config))
    try:
        check_documents_apart(halves(model, torch.device("cpu"), "fp32"))
    finally:
        model.set_attn_implementation(attention)


def _check_pad(config: Any, directory: Path) -> None:
    pad, words = getattr(config, "pad_token_id", None), int(config.vocab_size)
    if isinstance(pad, int) and not -words <= pad < words:
        raise ConfigError(
            f"model.base: {directory / CONFIG} says pad_token_id {pad}, but the model has {words} words; put null there"
        )


def initialise_model(
    shape: Mapping[str, Any], seed: int, tokenizer_files: Iterable[Path], export: Path
) -> None:
    """Write a new Llama-style model (`InitConfig` as plain JSON) with its tokenizer into an empty directory.

    Matrices are normal with deviation 0.02; those that write into the residual stream with 0.02 / sqrt(2 · layers)
    (Radford et al. 2019, section 2.3); norms are 1. numpy draws the numbers per tensor, from seed and name: they are
    the same on every machine, and no global random state is touched.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_directory(tokenizer_files)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, export / name)
    vocabulary = load_vocabulary(export)
    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"] or math.ceil(shape["hidden_size"] * 8 / 3 / 32) * 32,
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"] or shape["heads"],
        max_position_embeddings=shape["max_positions"],
        tie_word_embeddings=shape["tie_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        rms_norm_eps=1e-5,
        bos_token_id=vocabulary.eot,
        eos_token_id=vocabulary.eot,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {
        name: _drawn(name, tuple(parameter.shape), seed, config.num_hidden_layers)
        for name, parameter in model.named_parameters()
    }
    with disk_errors(export / WEIGHTS):
        save_file(weights, export / WEIGHTS, metadata={"format": "pt"})
    _write_json(export / "config.json", config.to_diff_dict())
    _write_generation(export, vocabulary.eot, vocabulary.eot)


def _drawn(name: str, shape: tuple[int, ...], seed: int, layers: int) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape)
    deviation = 0.02
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation /= math.sqrt(2 * layers)
    digest = hashlib.blake2b(json.dumps([seed, name]).encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    numbers = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(numbers * np.float32(deviation))


def _write_model(model: Any, export: Path, eot: int, bos: int) -> None:
    from transformers import GenerationConfig

    model.config.eos_token_id, model.config.bos_token_id = eot, bos
    generation: Any = GenerationConfig
    model.generation_config = generation(eos_token_id=eot, bos_token_id=bos)
    with _quiet(), disk_errors(export):
        model.save_pretrained(export, max_shard_size="1TB")
    _write_json(export / "config.json", json.loads((export / "config.json").read_bytes()))
    _write_generation(export, eot, bos)


def _write_generation(export: Path, eot: int, bos: int) -> None:
    _write_json(export / "generation_config.json", {"eos_token_id": eot, "bos_token_id": bos})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    kept = {name: value for name, value in values.items() if name not in _NOT_EXPORTED}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _import_tokenizer(directory: Path, staged: Path, config: Any, export: Path) -> tuple[int, int]:
    """Write the tokenizer's files. Returns the ids of end-of-text and begin-of-text (bos, else eos).

    transformers reads `staged`; the tokenizer's own configuration is that of `directory`.
    """
    definition = _definition(staged)
    facts = read_object(directory / "tokenizer_config.json")
    for name, entry in read_object(directory / "special_tokens_map.json").items():
        if name in _SPECIAL_NAMES and facts.get(name) is None:
            facts[name] = entry
    for name in ("auto_map", *DROPPED_NAMES):
        facts.pop(name, None)
    _check_definition(definition, directory)
    added = {entry["content"]: entry for entry in definition.get("added_tokens") or ()}
    eos = token_text(facts.get("eos_token")) or _added_name(added, config.eos_token_id)
    if eos is None:
        raise ConfigError(
            f"model.base: {directory} has no end-of-text token: neither tokenizer_config.json names an eos_token, "
            "nor is config.json's eos_token_id one of the tokenizer's added tokens."
        )
    bos = token_text(facts.get("bos_token")) or _added_name(added, config.bos_token_id) or eos
    facts |= {"eos_token": eos, "bos_token": bos}
    facts.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if eos in added and not added[eos].get("special"):
        added[eos]["special"] = True
    (export / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    _write_json(export / "tokenizer_config.json", facts)
    if (directory / "chat_template.jinja").is_file():
        shutil.copyfile(directory / "chat_template.jinja", export / "chat_template.jinja")
    _make_loadable(export, facts)
    tokenizer = load_vocabulary(export).tokenizer
    bos_id = tokenizer.token_to_id(bos)
    eot = end_of_text(export)
    return eot, eot if bos_id is None else bos_id


def _check_definition(definition: dict[str, Any], directory: Path) -> None:
    try:
        Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library has no error class of its own
        raise ConfigError(
            f"model.base: {directory / 'tokenizer.json'} is no tokenizer ({short(error)}); fetch it again"
        ) from error


def _added_name(added: Mapping[str, Mapping[str, Any]], ids: int | list[int] | None) -> str | None:
    """The added token with the (first) id. Other tokens do not count: a model's default id may be any word."""
    first = ids[0] if isinstance(ids, list) and ids else ids
    return next((name for name, entry in added.items() if entry["id"] == first), None)


def _definition(directory: Path) -> dict[str, Any]:
    """tokenizer.json, or transformers' conversion of an older tokenizer's files."""
    if (directory / "tokenizer.json").is_file():
        return read_object(directory / "tokenizer.json")
    if not any((directory / name).is_file() for name in _TOKENIZER_SOURCES):
        raise ConfigError(
            f"model.base: {directory} holds no tokenizer (tokenizer.json): save the model's tokenizer beside it with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(directory)"
        )
    from transformers import AutoTokenizer

    try:
        with _quiet():
            loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        definition: dict[str, Any] = json.loads(loaded.backend_tokenizer.to_str())
    except Exception as error:  # each class of tokenizer has readers of its own, with errors of every kind
        raise ConfigError(
            f"model.base: the tokenizer in {directory} has no fast form ({short(error)}); save one beside it with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(directory)"
        ) from error
    return definition


def _make_loadable(export: Path, facts: dict[str, Any]) -> None:
    """Make sure that AutoTokenizer gives the ids of tokenizer.json. A class that rebuilds it differently is replaced
    in the configuration."""
    reference = Tokenizer.from_file(str(export / "tokenizer.json"))
    expected = [reference.encode(text, add_special_tokens=False).ids for text in _PROBES]
    if _auto_ids(export) == expected:
        return
    facts["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(export / "tokenizer_config.json", facts)
    if _auto_ids(export) != expected:
        raise ConfigError(
            "model.base: transformers and tokenizers give different ids for its tokenizer.json."
        )


def _auto_ids(export: Path) -> list[list[int]] | None:
    from transformers import AutoTokenizer

    try:
        with _quiet():
            loaded = AutoTokenizer.from_pretrained(export, local_files_only=True, trust_remote_code=False)
        return [loaded(text, add_special_tokens=False).input_ids for text in _PROBES]
    except (OSError, ValueError, ImportError, AttributeError, KeyError):
        return None


def _check_vocabulary(export: Path, rows: int) -> None:
    size = load_vocabulary(export).size
    if size > rows:
        raise ConfigError(
            f"model.base: its tokenizer has ids up to {size - 1}, but the model has only {rows} words; put the model's own "
            "tokenizer beside it"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without the progress bars and log lines of transformers. Restores the settings afterwards."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
