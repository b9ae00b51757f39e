"""The harness's own command line over local rows: what our scores are compared with.

Definitions are the harness's files, by `include`; only where rows come from is written over.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval
import yaml

TASKS = Path(lm_eval.__file__).parent / "tasks"
DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "social_iqa": "siqa/siqa.yaml",
    "winogrande": "winogrande/default.yaml",
}
SUBJECTS = {  # of mmlu, by the harness's group
    "stem": ("anatomy", "astronomy", "machine_learning"),
    "humanities": ("formal_logic", "world_religions"),
    "social sciences": ("econometrics", "sociology"),
    "other": ("virology", "miscellaneous", "global_facts"),
}


def copy_rows(data: Path, to: Path, name: str, rows: int) -> Path:
    """The first rows of a benchmark below `to`, as local copies lie; of mmlu, some of each subject in SUBJECTS."""
    [source] = [*(data / name).glob("test.jsonl"), *(data / name).glob("validation.jsonl*")][:1]
    lines = (gzip.open if source.suffix == ".gz" else open)(source, "rt", encoding="utf-8").read()
    found = [json.loads(line) for line in lines.split("\n") if line.strip()]
    if name == "mmlu":
        wanted = {one for some in SUBJECTS.values() for one in some}
        taken: dict[str, int] = defaultdict(int)
        kept = []
        for row in found:
            subject = row["subject"]
            taken[subject] += 1
            if subject in wanted and taken[subject] <= rows + len(subject) % 3:  # subjects differ in size
                kept.append(row)
        found = kept
    path = to / name / f"{source.name.split('.')[0]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found[: None if name == "mmlu" else rows]))
    return path


def define(directory: Path, name: str, file: Path) -> str:
    """A task file in `directory` that is the harness's own over the rows of `file`; its name."""
    task = {**_over(file), "include": str(TASKS / DEFINITIONS[name]), "task": f"cli_{name}"}
    if name == "boolq":  # its hub page has the answer as a boolean, the harness's data set as a label
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        labelled = directory / "boolq.jsonl"
        labelled.write_text("".join(json.dumps({**r, "label": int(r["answer"])}) + "\n" for r in rows))
        task |= _over(labelled)
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return str(task["task"])


def define_fields(directory: Path, fields: Mapping[str, Any], file: Path) -> str:
    """A task file of fields that the harness has no file for."""
    task = {**fields, **_over(file), "task": f"cli_{fields['task']}"}
    (directory / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return str(task["task"])


def define_mmlu(directory: Path, form: str, file: Path, examples: Path | None = None, shots: int = 0) -> str:
    """The same of mmlu (`default` or `continuation`): subjects, the harness's groups of them, and the whole. The first
    `shots` rows of a subject in `examples` stand before each of its questions."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    shown = [json.loads(line) for line in examples.read_text().splitlines()] if examples else []
    suffix = "" if form == "default" else "_continuation"
    whole = f"cli_mmlu{suffix}"
    for group, subjects in SUBJECTS.items():
        for subject in subjects:
            own, dev = (directory / f"mmlu_{subject}{split}.jsonl" for split in ("", "_dev"))
            for path, some in ((own, rows), (dev, shown)):
                path.write_text("".join(json.dumps(row) + "\n" for row in some if row["subject"] == subject))
            base = str(TASKS / "mmlu" / form / f"mmlu_{subject}.yaml")
            task = {**_over(own), "include": base, "task": f"cli_{subject}{suffix}"}
            if shots:
                files = {"test": str(own), "dev": str(dev)}
                task |= {
                    "dataset_kwargs": {"data_files": files},
                    "fewshot_split": "dev",
                    "num_fewshot": shots,
                }
            (directory / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
        members = [f"cli_{subject}{suffix}" for subject in subjects]
        _write_group(directory, f"{whole}_{group.replace(' ', '_')}", members)
    _write_group(directory, whole, [f"{whole}_{group.replace(' ', '_')}" for group in SUBJECTS])
    return whole


def _write_group(directory: Path, name: str, members: list[str]) -> None:
    metric = [{"metric": "acc", "weight_by_size": True}]
    group = {"group": name, "task": members, "aggregate_metric_list": metric}
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(group))


def _over(file: Path) -> dict[str, Any]:
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
        "tag": None,
    }


def measure(export: Path, names: list[str], include: Path, length: int, work: Path) -> dict[str, Any]:
    """`lm_eval --tasks …` on a model: {"results", "groups", "samples": {task: rows}}."""
    command = [sys.executable, "-m", "lm_eval", "--model", "hf"]
    command += ["--model_args", f"pretrained={export},max_length={length}", "--tasks", ",".join(names)]
    command += ["--include_path", str(include), "--device", "cpu", "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output_path", str(work / "out")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next((work / "out").rglob("results*.json")).read_text())
    samples = {}
    for path in (work / "out").rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        samples[path.name.removeprefix("samples_").rsplit("_", 1)[0]] = sorted(
            rows, key=lambda r: r["doc_id"]
        )
    return {"results": found["results"], "groups": found.get("groups", {}), "samples": samples}
