"""What readers other than this project's transformers need to take an export for what it is.

transformers 5 reads an export as it was trained. transformers 4, and what is built on it, knows other names for the
settings of rotary positions and for the class of a tokenizer, and ties a head to the embedding where the flag says so,
whatever the weights are. AutoTokenizer may build a tokenizer anew by a class, with other ids. So the stage `base` writes a
part `readers` where there is something to say: entries and files that the trainer puts into each export that it makes of
the base. `onward export` does so too, on the way out, for every model of every store.

The part is not in the base's own export, and is no input of a trunk: so a store of 0.1.0, whose base has no such part,
keeps its keys, its bytes and its training.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer

from storage.errors import ConfigError
from tasks.corpus.tokens.vocabulary import token_text
from tasks.models.source import CONFIG, WEIGHTS, chat_template, configuration, read_object
from tasks.training.model import quiet
from tasks.training.state.readers import GENERATION, TOKENIZER_CONFIG

OF_CHAT = (
    "The base has a chat template, so it is a chat model, and continued pre-training on plain text wears the "
    "chat away; its "
    "exports keep the template. The way back: train the base that it was made from, and name this model as merge.instruct, "
    "which adds to the trained model what made it a chat model (docs/merge.md)."
)
"""What is said of a base that is a chat model."""
_OF_VERSION_5 = ("backend", "is_local", "local_files_only")
"""Entries of tokenizer_config.json that say how version 5 loaded the tokenizer."""
_PLAIN = "PreTrainedTokenizerFast"
_ALIKE = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer")
"""Classes, without `Fast`, that both versions have, and that take the tokens around a text from tokenizer.json alone."""
_NO_CODE = {"AutoTokenizer": ["", ""]}
"""An `auto_map` that names no code: version 5 then takes the class of tokenizer_config.json for every kind of model."""
_ASSUMED = {
    "llama": {"rope_theta": 10_000.0},
    "gpt_neox": {"rotary_emb_base": 10_000.0, "rotary_pct": 0.25},
}
"""What version 4 assumes of the kinds of models that 0.1.0 named: said only where it is otherwise."""
_USUAL = {"use_cache": True, "do_sample": False, "output_attentions": False, "output_hidden_states": False}
"""Settings of generation that say nothing: save_pretrained writes them of every model."""
_PROBES = (
    "Once upon a time, there was a café; it cost $12,345.67 (naïve).",
    "def f(x):\n\treturn  x ** 2   # 漢字 🙂\r\n\n",
    " leading and trailing ",
    "It's 1999: we'll see — THEY'RE “unbelievably” re-entered, e.g. cafe\u0301 and ﬁne…\n\n\n  Ünïcödé 3.14159",
)


def write_readers(export: Path, out: Path, original: Path | None = None) -> list[str]:
    """Write what an export needs into the empty directory `out`, which stays empty where it needs nothing.

    `out`/config.json holds entries to add to the export's; each other file replaces the export's. `original` is the
    directory that the model was imported from. Returns warnings. Raises ConfigError if the export's configuration cannot
    be read.
    """
    raw = (export / CONFIG).read_bytes()
    values = json.loads(raw)
    entries, warnings = spelled(values)
    if _has_head_of_its_own(export, values):
        entries["tie_word_embeddings"] = False
    facts, unlike = read_as_written(export, values | entries)
    if entries:
        _write(out / CONFIG, entries)
    if facts is not None:
        _write(out / TOKENIZER_CONFIG, facts)
    warnings.extend(unlike)
    if original is not None:
        generation = _generation(read_object(original / GENERATION), read_object(export / GENERATION))
        if generation is not None:
            _write(out / GENERATION, generation)
        if (original / "tokenizer.model").is_file():
            shutil.copyfile(original / "tokenizer.model", out / "tokenizer.model")
        warnings.extend(template_warnings(export, original))
    return warnings


def spelled(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Entries for a config.json that say in version 4's names what version 5 says in `rope_parameters`, and warnings.

    Version 5 reads the configuration with them as it did without them: what it would read otherwise is left out. Empty
    where version 4 assumes the same.
    """
    entries = _in_version_4(values)
    if entries is None:
        kind = values.get("model_type")
        return {}, [
            f"transformers 4 has no names for the rotary positions of this {kind}: its exports are for version 5"
        ]
    if not entries or entries == _ASSUMED.get(str(values.get("model_type"))):
        return {}, []
    for left_out in ((), ("rope_scaling",), tuple(entries)):
        kept = {name: value for name, value in entries.items() if name not in left_out}
        if _reads_the_same(values, kept):
            break
    lost = [name for name in entries if name not in kept]
    warnings = (
        [f"transformers 4 cannot be told {', '.join(lost)} of this model beside version 5's"] if lost else []
    )
    return kept, warnings


def _in_version_4(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rotary positions in version 4's names; None if it has none for them."""
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    kind = str(values.get("model_type"))
    by_layer = {name: one for name, one in rope.items() if isinstance(one, dict)}
    if not by_layer:
        return _flat(kind, rope)
    full, local = by_layer.get("full_attention"), by_layer.get("sliding_attention")
    if full is None or local is None:
        return _flat(kind, next(iter(by_layer.values()))) if len(by_layer) == 1 else None
    plain = local.get("rope_type", "default") == "default"
    if kind == "gemma3_text" and plain:
        return _flat(kind, full) | {"rope_local_base_freq": local["rope_theta"]}
    if kind == "modernbert-decoder" and plain and full.get("rope_type", "default") == "default":
        return {"global_rope_theta": full["rope_theta"], "local_rope_theta": local["rope_theta"]}
    if full == local or (kind == "olmo3" and plain and full["rope_theta"] == local["rope_theta"]):
        return _flat(kind, full)
    return None


def _flat(kind: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        ("rotary_emb_base", "rotary_pct") if kind == "gpt_neox" else ("rope_theta", "partial_rotary_factor")
    )
    found = {
        name: rope[key]
        for name, key in zip(names, ("rope_theta", "partial_rotary_factor"), strict=True)
        if rope.get(key) is not None
    }
    scaling = {
        name: value
        for name, value in rope.items()
        if name not in ("rope_theta", "partial_rotary_factor", "rope_type", "type")
    }
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("phi3", "phimoe") and rope_type == "longrope":  # it takes just these
        names_of_it = ("short_factor", "long_factor")
        found["rope_scaling"] = {"type": rope_type} | {name: scaling[name] for name in names_of_it}
    elif rope_type != "default":
        found["rope_scaling"] = {"rope_type": rope_type, "type": rope_type} | scaling
    return found


def _reads_the_same(values: Mapping[str, Any], entries: Mapping[str, Any]) -> bool:
    """Whether version 5 reads a configuration with these entries as it does without them."""
    try:
        before, after = (
            configuration(json.dumps(one).encode(), CONFIG).to_dict()
            for one in (dict(values), {**values, **entries})
        )
    except ConfigError:
        return False
    same = (
        _without_type(after.get(name)) == _without_type(one) for name, one in before.items() if name[0] != "_"
    )
    return all(same)


def _without_type(value: Any) -> Any:
    """Rotary positions without version 4's name for their `rope_type`."""
    if not isinstance(value, dict):
        return value
    dropped = ("type",) if "rope_type" in value else ()
    return {name: _without_type(one) for name, one in value.items() if name not in dropped}


def _has_head_of_its_own(export: Path, values: Mapping[str, Any]) -> bool:
    """Whether the flag ties the head to the embedding, but the weights hold a head."""
    from transformers import AutoModelForCausalLM

    config = configuration(json.dumps(dict(values)).encode(), CONFIG)
    if not getattr(config, "tie_word_embeddings", False):
        return False
    mapping: Any = AutoModelForCausalLM._model_mapping
    maker = mapping[type(config)]
    tied = getattr(maker[0] if isinstance(maker, tuple) else maker, "_tied_weights_keys", None) or {}
    with safe_open(export / WEIGHTS, framework="numpy") as weights:
        return bool(set(tied) & set(weights.keys()))


def read_as_written(export: Path, values: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The tokenizer_config.json with which AutoTokenizer gives the ids of tokenizer.json, where it must be another; and
    warnings. `values` is the model's configuration, by which AutoTokenizer chooses a class."""
    before = read_object(export / TOKENIZER_CONFIG)
    facts = plain_facts(before)
    for said in _ways(facts):
        if _ids_are_kept(export, values, said):
            if "auto_map" in said:
                return said, [
                    f"transformers 5 builds every tokenizer of a {values.get('model_type')} by one class, which is not "
                    "that of this one: tokenizer_config.json of exports says so (an auto_map without code); load it "
                    "without trust_remote_code"
                ]
            return (None if said == before else said), []
    return (None if facts == before else facts), [
        "AutoTokenizer gives other ids than tokenizer.json, by which this model is trained and measured: load its "
        "tokenizer with PreTrainedTokenizerFast.from_pretrained"
    ]


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration that both versions read: their common class, and no names of version 5 alone."""
    found = {name: value for name, value in facts.items() if name not in _OF_VERSION_5}
    if str(found.get("tokenizer_class", _PLAIN)).removesuffix("Fast") not in _ALIKE:
        found["tokenizer_class"] = _PLAIN
    extra = found.get("extra_special_tokens")
    if isinstance(extra, list):  # version 4 takes names of tokens here, and its list has this name
        del found["extra_special_tokens"]
        if extra:
            found["additional_special_tokens"] = [token for one in extra if (token := token_text(one))]
    named = found.pop("model_specific_special_tokens", None)
    if isinstance(named, dict) and named:
        found["extra_special_tokens"] = named
    return found


def _ways(facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield dict(facts)
    yield {**facts, "tokenizer_class": _PLAIN}
    yield {**facts, "tokenizer_class": _PLAIN, "auto_map": _NO_CODE}


def _ids_are_kept(export: Path, values: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether AutoTokenizer gives the ids of tokenizer.json beside these configurations of model and tokenizer."""
    from transformers import AutoTokenizer

    reference = Tokenizer.from_file(str(export / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        shutil.copyfile(export / "tokenizer.json", staged / "tokenizer.json")
        _write(staged / CONFIG, values)
        _write(staged / TOKENIZER_CONFIG, facts)
        try:
            with quiet():
                loaded = AutoTokenizer.from_pretrained(staged, local_files_only=True, trust_remote_code=False)
                return all(
                    loaded(text, add_special_tokens=special).input_ids
                    == reference.encode(text, add_special_tokens=special).ids
                    for text in _PROBES
                    for special in (False, True)
                )
        except Exception:  # each class of tokenizer has readers of its own, with errors of every kind
            return False


def _generation(own: Mapping[str, Any], exported: Mapping[str, Any]) -> dict[str, Any] | None:
    """The base's settings of generation with all its ends of text; None if the export's say as much."""
    ends = own.get("eos_token_id", [])
    ends = [one for one in (ends if isinstance(ends, list) else [ends]) if isinstance(one, int)]
    first = exported.get("eos_token_id")
    if isinstance(first, int) and first not in ends:
        ends = [first, *ends]
    kept = {name: value for name, value in own.items() if name[0] != "_" and name != "transformers_version"}
    kept |= {name: value for name, value in exported.items() if kept.get(name) is None and value is not None}
    kept["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    kept = {name: value for name, value in kept.items() if value is not None and _USUAL.get(name) != value}
    return None if kept == exported else kept


def template_warnings(export: Path, original: Path) -> Iterator[str]:
    """What is to be said of a base's chat template: it is kept, and may name tokens that the tokenizer lacks."""
    template = chat_template(original)
    if template is None:
        template = chat_template(export)
    if template is None:
        return
    yield OF_CHAT
    tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
    missing = [name for name in _marks(template) if tokenizer.token_to_id(name) is None]
    if missing:
        yield f"The base's chat template names {', '.join(missing[:5])}, which its tokenizer does not have as tokens."


def _marks(template: str) -> list[str]:
    """The texts like <|user|> or [INST] in a template."""
    import re

    return list(
        dict.fromkeys(re.findall(r"<\|[^|<>\s{}]+\|>|\[/?[A-Z_]{2,}\]|<(?:start|end)_of_turn>", template))
    )


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
