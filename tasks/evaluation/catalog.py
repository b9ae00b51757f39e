"""The supported benchmarks: their task definition, their local files, and the score shown first.

The flow checks them before any work: every name is known and every file exists (`check_benchmarks`). It also asks
which files decide a result (`benchmark_files_of`). This module does not import the harness; `harness.py` does, when a
stage runs.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.errors import ConfigError
from storage.settings import Count, FreeText, LineText, PathText, Real, Settings, execution, identity
from tasks.evaluation.directory import read_task_directory

Group = Literal["domain", "general"]
Precision = Literal["fp32", "bf16"]
FP32: Precision = "fp32"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the harness. `definition`: its YAML below `lm_eval/tasks`; a folder if it has subjects.

    `data`: the benchmark whose files it reads, if they have another name. A definition that the harness lacks is given
    here, as its fields.
    """

    name: str
    definition: str | Mapping[str, Any]
    split: str
    main: str
    dataset: tuple[str, str | None]
    fewshot_split: str = "train"
    subject_column: str | None = None
    data: str | None = None

    @property
    def files(self) -> str:
        """The directory of its files, below that of all benchmarks."""
        return self.data or self.name


def _known(*benchmarks: Benchmark) -> dict[str, Benchmark]:
    return {benchmark.name: benchmark for benchmark in benchmarks}


COMMONSENSE_QA_CONTINUATION: Mapping[str, Any] = {
    "task": "commonsense_qa_continuation",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
    "doc_to_choice": "{{choices.text}}",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ],
}
"""The harness asks CommonsenseQA by letters only. This definition uses the prompt of its `mmlu_continuation`: the
choices are not shown, and the text of each is scored."""

BENCHMARKS = _known(
    Benchmark(
        "arc_challenge", "arc/arc_challenge.yaml", "test", "acc_norm", ("allenai/ai2_arc", "ARC-Challenge")
    ),
    Benchmark("arc_easy", "arc/arc_easy.yaml", "test", "acc_norm", ("allenai/ai2_arc", "ARC-Easy")),
    Benchmark("boolq", "super_glue/boolq/default.yaml", "validation", "acc", ("aps/super_glue", "boolq")),
    Benchmark(
        "commonsense_qa", "commonsense_qa/default.yaml", "validation", "acc", ("tau/commonsense_qa", None)
    ),
    Benchmark(
        "commonsense_qa_continuation",
        COMMONSENSE_QA_CONTINUATION,
        "validation",
        "acc_norm",
        ("tau/commonsense_qa", None),
        data="commonsense_qa",
    ),
    Benchmark("hellaswag", "hellaswag/hellaswag.yaml", "validation", "acc_norm", ("Rowan/hellaswag", None)),
    Benchmark(
        "lambada_openai",
        "lambada/lambada_openai.yaml",
        "test",
        "acc",
        ("EleutherAI/lambada_openai", "default"),
    ),
    Benchmark("mmlu", "mmlu/default", "test", "acc", ("cais/mmlu", None), "dev", "subject"),
    Benchmark(
        "mmlu_continuation",
        "mmlu/continuation",
        "test",
        "acc",
        ("cais/mmlu", None),
        "dev",
        "subject",
        "mmlu",
    ),
    Benchmark("openbookqa", "openbookqa/openbookqa.yaml", "test", "acc_norm", ("allenai/openbookqa", "main")),
    Benchmark("piqa", "piqa/piqa.yaml", "validation", "acc_norm", ("baber/piqa", None)),
    Benchmark("sciq", "sciq/sciq.yaml", "test", "acc_norm", ("allenai/sciq", None)),
    Benchmark("social_iqa", "siqa/siqa.yaml", "validation", "acc", ("lighteval/siqa", None)),
    Benchmark(
        "winogrande", "winogrande/default.yaml", "validation", "acc", ("allenai/winogrande", "winogrande_xl")
    ),
)
"""All benchmarks, by name. `main` is the score shown first: length-normalised if the harness offers it, else accuracy."""

OWN_MAIN = "acc_mutual_info"
"""The score shown first for a user's own benchmark: the likelihood that the question adds to the bare answer."""


class OwnBenchmark(Settings):
    """A user's own benchmark: a JSONL file, a directory of the harness's task files, or made from held-out documents."""

    name: str = identity(description="Name of the benchmark.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    group: Group = identity("domain", description="Where it is shown and averaged: domain or general.")
    file: PathText | None = execution(None, description="JSONL rows: question, choices, answer (index).")
    tasks: PathText | None = execution(
        None, description="Directory of task files (YAML) of lm-evaluation-harness over local data files."
    )
    held_out: LineText | None = identity(
        None, description="Source whose held-out documents the questions are made from."
    )
    questions: Count = identity(200, description="How many questions to make of held-out documents.", ge=1)


class EvaluationConfig(Settings):
    """What every model is measured on."""

    domain: tuple[str, ...] = identity(
        (), description="Benchmarks of the domain, by the harness's names.", choices=tuple(BENCHMARKS)
    )
    general: tuple[str, ...] = identity(
        (), description="Benchmarks of what should not be forgotten.", choices=tuple(BENCHMARKS)
    )
    own: tuple[OwnBenchmark, ...] = identity((), description="The user's own benchmarks.")
    limit: Count | None = identity(
        None, description="At most so many questions of each benchmark, drawn by the seed; null: all.", ge=2
    )
    precision: Precision = identity(
        FP32,
        since="0.2",
        description="Arithmetic of benchmarks and perplexity: fp32, or bf16, which is faster where the processor has it. "
        "Samples are written in fp32.",
    )
    overlap: Real = identity(
        0.5,
        since="0.2",
        description="Share of a window that the next one reads again, as context for what it scores, in a perplexity.",
        ge=0,
        le=0.75,
    )
    checkpoints: bool = execution(
        False, description="Measure what training.keep_every_tokens keeps on the way too."
    )
    prompts: tuple[FreeText, ...] = identity(
        (), description="Beginnings that every model continues, beside the usual ones."
    )
    sample_tokens: Count = identity(
        64, description="Tokens of each continuation at most; 0: no samples are written.", ge=0
    )

    def groups(self) -> dict[str, Group]:
        """The group of every benchmark, by name: first the domain's, then general ones, then own ones, in the given
        order."""
        named: dict[str, Group] = dict.fromkeys(self.domain, "domain")
        named.update(dict.fromkeys(self.general, "general"))
        named.update({own.name: own.group for own in self.own})
        return named

    def below(self, directory: Path) -> EvaluationConfig:
        """The same configuration with absolute paths of own benchmarks; relative ones start at `directory`."""
        fields = ("file", "tasks")
        own = (
            (one, {name: str(directory / path) for name in fields if (path := getattr(one, name))})
            for one in self.own
        )
        return self.model_copy(update={"own": tuple(one.model_copy(update=paths) for one, paths in own)})


def check_benchmarks(
    config: EvaluationConfig, benchmark_files: Path | str | None, sources: Sequence[str] | None = None
) -> None:
    """Raise ConfigError, naming all problems, unless every benchmark of the configuration can be measured.

    `benchmark_files`: the directory of local copies; None if the hub is used (its content is not checked here).
    `sources`: if given, the names that `held_out` may take.
    """
    wrong = []
    names = [*config.domain, *config.general, *(own.name for own in config.own)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        wrong.append(f"{name} stands more than once in evaluation")
    for name in [*config.domain, *config.general]:
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, 1)
            wrong.append(f"{name} is not supported" + (f" (nearest: {near[0]})" if near else ""))
        elif benchmark_files is not None:
            wrong += _missing(BENCHMARKS[name], Path(benchmark_files))
    for own in config.own:
        wrong += _wrong_own(own, sources)
    if wrong:
        raise ConfigError(
            "evaluation cannot run: "
            + "; ".join(wrong)
            + f". Supported benchmarks: {', '.join(BENCHMARKS)}; "
            "any other as evaluation.own, with a JSONL file of question, choices and answer or a directory of task files."
        )


def _missing(benchmark: Benchmark, directory: Path) -> list[str]:
    if _split_file(benchmark, directory) is not None:
        return []
    wanted = directory / benchmark.files / f"{benchmark.split}.jsonl"
    return [f"{benchmark.name} has no file: {wanted} (or .gz) is not there"]


def _wrong_own(own: OwnBenchmark, sources: Sequence[str] | None) -> list[str]:
    if own.name in BENCHMARKS:
        return [f"own benchmark {own.name} has the name of one of the harness's"]
    if sum(given is not None for given in (own.file, own.tasks, own.held_out)) != 1:
        return [f"own benchmark {own.name} needs one of file, tasks and held_out"]
    if own.file is not None and not Path(own.file).is_file():
        return [f"own benchmark {own.name}: {own.file} is not a file"]
    if own.tasks is not None:
        try:
            read_task_directory(Path(own.tasks))
        except ConfigError as error:
            return [f"own benchmark {own.name}: {error}"]
    if own.held_out is not None and sources is not None and own.held_out not in sources:
        return [
            f"own benchmark {own.name}: no source is named {own.held_out} (there are: {', '.join(sources)})"
        ]
    return []


def supported(name: str) -> Benchmark:
    """The benchmark of that name. Raises ConfigError if it is unknown; the error lists the known names."""
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark {name} is not supported; supported are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def benchmark_files_of(name: str, directory: Path | str, shots: int | None = None) -> tuple[Path, ...]:
    """The local files that decide a benchmark's result: the scored split, then, with shots, the split of the examples.

    Raises ConfigError if the benchmark is unknown or a file is missing. The harness scores the test split if a
    benchmark has one. If only `validation` exists, that is scored (`scores.json` names the split).
    """
    benchmark, directory = supported(name), Path(directory)
    scored = _split_file(benchmark, directory)
    if scored is None:
        raise ConfigError(_missing(benchmark, directory)[0])
    if not shots:
        return (scored,)
    examples = _file(directory, benchmark.files, benchmark.fewshot_split)
    if examples is None:
        wanted = directory / benchmark.files / benchmark.fewshot_split
        raise ConfigError(f"{name} with {shots} shots needs {wanted}.jsonl (or .gz)")
    return scored, examples


def _split_file(benchmark: Benchmark, directory: Path) -> Path | None:
    return _file(directory, benchmark.files, benchmark.split) or _file(
        directory, benchmark.files, "validation"
    )


def _file(directory: Path, name: str, split: str) -> Path | None:
    for suffix in (".jsonl", ".jsonl.gz"):
        path = directory / name / f"{split}{suffix}"
        if path.is_file():
            return path
    return None


def questions_of(name: str) -> str:
    """The benchmark whose questions it asks: usually itself; another one if it only changes the words
    (`Benchmark.data`)."""
    return BENCHMARKS[name].files if name in BENCHMARKS else name


def harness_version() -> str:
    """Version of the installed lm-evaluation-harness. Its task definitions and metrics decide a score."""
    return importlib.metadata.version("lm_eval")


def file_identity(path: Path) -> dict[str, Any]:
    """Name, bytes and sha256 of a file, as they enter a key."""
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
