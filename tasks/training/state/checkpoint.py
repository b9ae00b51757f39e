"""Checkpoints: `checkpoints/step-00001200/` is either whole or not there. Every byte is verified before use.

Files: model.safetensors, optimizer.safetensors, state.json (step, tokens seen, journal length, identity, resolved
execution; the random state is a function of seed and step) and manifest.json with each file's size and sha256. They
are written to a temporary directory, fsynced and renamed. The clock decides when to write one, but affects no
result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storage.atomic import commit_directory, sha256_file
from storage.errors import ConfigError, DamagedArtifact
from tasks.training.process.processes import is_shard
from tasks.training.process.sharding import own_part, shared_out
from tasks.training.spec import Identity
from tasks.training.state.average import AVERAGE

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
_TEMPORARY = ".tmp-"
_DAMAGED = "damaged-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """The step after which it was taken."""
        return int(self.state["step"])


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; each tied tensor appears once."""
    seen: set[tuple[int, torch.Size]] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not is_shard(tensor):  # tied tensors are never sharded
            mark = (tensor.data_ptr(), tensor.shape)
            if tensor.numel() and mark in seen:
                continue
            seen.add(mark)
        tensors[name] = tensor.detach().contiguous()
    return tensors


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `model_tensors` returned. Raises DamagedArtifact if it does not fit the model."""
    own = model_tensors(model)
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))[0]
        raise DamagedArtifact(
            f"The checkpoint's weights do not fit the model: {odd} is in only one of the two."
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise DamagedArtifact(f"The checkpoint's {name} has the shape {tuple(tensors[name].shape)}.")
        own_part(tensor).copy_(own_part(shared_out(tensors[name], tensor)))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file to the host. Raises DamagedArtifact."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedArtifact(f"{path}: not a whole safetensors file ({error}).") from error


def save_checkpoint(root: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Commit `step-…` below `root`; replaces one of the same step. `files` maps file names to tensors by name, on
    the host.
    """
    final = root / f"step-{int(state['step']):08d}"
    temporary = root / f"{_TEMPORARY}{final.name}"
    remove(temporary)
    temporary.mkdir(parents=True)
    for name, tensors in files.items():
        save_file(dict(tensors), temporary / name)
    (temporary / STATE).write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
    written = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(temporary.iterdir())
    }
    (temporary / MANIFEST).write_text(
        json.dumps({"format": 1, "files": written}, sort_keys=True), encoding="utf-8"
    )
    remove(final)
    commit_directory(temporary, final)
    return final


def newest_checkpoint(
    root: Path, say: Callable[[str], None], journal_holds: Callable[[Mapping[str, Any]], bool]
) -> Checkpoint | None:
    """The newest whole checkpoint. Damaged ones are renamed to `damaged-…`, with a warning to `say`.

    `journal_holds` checks that the journal still begins with what a state's journal mark names.
    """
    for path in sorted(_complete(root), reverse=True):
        try:
            state = _verified_state(path)
            if not journal_holds(state["journal"]):
                raise DamagedArtifact(
                    f"{path}: the journal was altered before the position of this checkpoint."
                )
            return Checkpoint(path, state)
        except DamagedArtifact as error:
            aside = _free_name(path)
            path.rename(aside)
            say(f"warning: {error} It was set aside as {aside.name}; the checkpoint before it is used.")
    return None


def checkpoint_at(root: Path, step: int) -> Checkpoint:
    """The checkpoint of this step, which another process has verified."""
    path = root / f"step-{step:08d}"
    return Checkpoint(path, json.loads((path / STATE).read_text(encoding="utf-8")))


def prune(root: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` checkpoints. Others are renamed before removal, so no half checkpoint is ever
    visible.
    """
    for path in sorted(_complete(root))[:-keep_last]:
        remove(path)


def clean(root: Path) -> None:
    """Remove half-written files of a killed attempt."""
    if root.is_dir():
        for path in root.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path)


def check_identity(found: Mapping[str, Any], identity: Identity, where: Path) -> None:
    """Raise ConfigError if `found`, the identity of earlier work, differs; the error names the fields."""
    wanted = json.loads(identity.canonical)
    if found == wanted:
        return
    differences = [
        f"{name} was {_get(found, name)}, is {_get(wanted, name)}"
        for name in sorted({*_leaves(found), *_leaves(wanted)})
        if _get(found, name) != _get(wanted, name)
    ]
    raise ConfigError(
        f"{where} was begun with another specification: {'; '.join(differences)}. "
        "Go on with the old values, or start in another work directory."
    )


def replace_directory(work: Path, name: str, fill: Callable[[Path], None]) -> None:
    """Replace `work/name` in one rename. `fill` writes into an empty directory."""
    temporary, final = work / f"{_TEMPORARY}{name.replace('/', '-')}", work / name
    remove(temporary)
    temporary.mkdir(parents=True)
    fill(temporary)
    remove(final)
    commit_directory(temporary, final)


def _complete(root: Path) -> Iterator[Path]:
    return (path for path in root.glob("step-*") if path.is_dir())


def _verified_state(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest != {"format": 1, "files": files} or set(files) - {AVERAGE} != {MODEL, OPTIMIZER, STATE}:
            raise DamagedArtifact(f"{path / MANIFEST} is not what was written.")
        for name in sorted(files):
            size = (path / name).stat().st_size
            if size != files[name]["bytes"]:
                raise DamagedArtifact(f"{path / name} has {size} of {files[name]['bytes']} bytes.")
            if sha256_file(path / name) != files[name]["sha256"]:
                raise DamagedArtifact(f"{path / name}: its bytes are not those that were written (sha256).")
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        return state
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(f"{path} is not whole ({type(error).__name__}: {error}).") from error


def remove(path: Path) -> None:
    """Remove a directory, if it exists. Where it is more than a half-written one, it is renamed before."""
    if not path.exists():
        return
    gone = path
    if not path.name.startswith(_TEMPORARY):
        gone = path.with_name(f"{_TEMPORARY}gone-{path.name}")
        if gone.exists():
            shutil.rmtree(gone)
        path.rename(gone)
    shutil.rmtree(gone)


def _free_name(path: Path) -> Path:
    number = 0
    while (aside := path.with_name(f"{_DAMAGED}{path.name}" + (f"-{number}" if number else ""))).exists():
        number += 1
    return aside


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _get(value: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        value = value.get(name, "(absent)") if isinstance(value, Mapping) else "(absent)"
    return value
