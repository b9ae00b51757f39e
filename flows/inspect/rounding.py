"""What rounding the weights of a model changes: its perplexity on the text that the model was measured on."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from storage.artifact import Artifact, Input
from storage.catalog import Catalog
from storage.draft import Draft
from tasks.evaluation import perplexity
from tasks.evaluation.perplexity import PerplexityConfig, PerplexityInputs
from tasks.models.card import Measured, measurements
from tasks.models.form import GGUF, Form


def measured(catalog: Catalog, artifact: Artifact, export: Path, form: Form) -> list[Measured]:
    """For each held-out text that the model in the store was measured on, the same of the weights in `export`.

    Of a GGUF file it is of the numbers that the file holds, computed here. What is held out no more is left out. It takes
    what measuring the model took.
    """
    known = {
        key[0]: one for key, one in measurements(catalog, artifact).items() if one.stage == perplexity.STAGE
    }
    found = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "export"
        _as_read(artifact, export, form, place)
        files = tuple(f"export/{path.name}" for path in sorted(place.iterdir()))
        model = Input(artifact.stage, artifact.key, "export", "", place.parent, files)
        for source, one in sorted(known.items()):
            holdout = one.manifest.inputs["holdout"]
            held = catalog.store.lookup(holdout["stage"], holdout["key"])
            if held is None or not held.has(holdout["part"]):
                continue
            config = PerplexityConfig(**one.manifest.config)
            inputs = PerplexityInputs(model, held.part(holdout["part"]))
            stats = asdict(perplexity.run(config, inputs, Draft(Path(name) / source)))
            found.append(
                Measured(
                    source,
                    int(stats["documents"]),
                    float(stats["perplexity"]),
                    float(one.stats["perplexity"]),
                )
            )
    return found


def _as_read(artifact: Artifact, export: Path, form: Form, place: Path) -> None:
    """A directory that `from_pretrained` loads, with the numbers that the weights in `export` have."""
    place.mkdir()
    if form.format != GGUF:
        for path in export.iterdir():
            if path.is_file() and path.name != "README.md":
                (place / path.name).symlink_to(path.resolve())
        return
    from tasks.formats.gguf_file import write_as_read

    for path in (artifact.path / "export").iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, place / path.name)
    write_as_read(artifact.path / "export", place, form.said)
