"""What each form of an exported model costs and changes: bytes, seconds, log-probabilities and perplexity.

    python benchmarks/forms.py MODEL [TEXT.parquet]   # a directory as `from_pretrained` loads it: one table of its forms
    python benchmarks/forms.py                        # small models of every family, each in llama.cpp (xllamacpp)

A form of MODEL is written once and read back by transformers in float32: safetensors as they
are, GGUF by its own reader. Its log-probabilities are compared with those of the model in float32 on the same 1,024 tokens.
llama.cpp (xllamacpp, of `make install-agreement`) continues a prompt from each GGUF file, greedily, with one thread;
the table has the number of tokens, of 32, until its text is another than the model's own, and tokens per second, prompt
included.
Prints Markdown.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tasks.formats.gguf_file import write_gguf  # noqa: E402
from tasks.formats.rounded import write_rounded  # noqa: E402
from tasks.training.model import quiet  # noqa: E402
from tests.support.forms import READ_BY_LLAMA_CPP, made_tokenizer, noisy_model  # noqa: E402
from tests.support.llama_cpp import Llama  # noqa: E402

FORMS = [("safetensors", dtype) for dtype in ("bf16", "fp16")]
FORMS += [("gguf", dtype) for dtype in ("fp32", "bf16", "fp16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")]
WINDOW, WINDOWS, WRITTEN = 512, 2, 32
PROMPT = "The most important thing to understand about"
TEXT = ROOT.parent / "shared/data/edu/part-00000.parquet"


def main() -> None:
    if len(sys.argv) > 1:
        of_a_model(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else TEXT)
    else:
        of_families()


def of_a_model(model: Path, text: Path) -> None:
    """The table of one model's forms."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode("\n\n".join(pl.read_parquet(text)["text"].head(40)), add_special_tokens=False).ids
    windows = torch.tensor(ids[: WINDOW * WINDOWS]).reshape(WINDOWS, WINDOW)
    whole = loaded(model)
    own = log_probabilities(whole, windows)
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    text_of = whole.generate(torch.tensor([prompt]), max_new_tokens=WRITTEN, do_sample=False)[0].tolist()
    del whole
    print(
        "| form | MB | s to write | largest difference of a log-probability | perplexity "
        "| llama.cpp: tokens as of the model | tokens/s |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(f"| the model in float32 | | | | {perplexity(own, windows):.3f} | | |")
    for format_, dtype in FORMS:
        with tempfile.TemporaryDirectory() as name:
            out = Path(name)
            seconds = written(model, out, format_, dtype)
            (weights,) = (*out.glob("*.safetensors"), *out.glob("*.gguf"))
            found = log_probabilities(loaded(out, weights if format_ == "gguf" else None), windows)
            same, speed = llama(weights, prompt, text_of) if format_ == "gguf" else ("", "")
            print(
                f"| {format_} {dtype} | {weights.stat().st_size / 1e6:.1f} | {seconds:.1f} "
                f"| {float((found - own).abs().max()):.1e} | {perplexity(found, windows):.3f} | {same} | {speed} |",
                flush=True,
            )


def written(model: Path, out: Path, format_: str, dtype: str) -> float:
    """Seconds to write one form."""
    if format_ == "safetensors":
        for path in model.iterdir():
            if path.suffix != ".safetensors":
                shutil.copyfile(path, out / path.name)
    started = time.perf_counter()
    if format_ == "gguf":
        write_gguf(model, out / "model.gguf", dtype, "model")
    else:
        write_rounded(model, out, dtype)
    return time.perf_counter() - started


def loaded(directory: Path, gguf: Path | None = None) -> Any:
    """A model in float32."""
    named = {} if gguf is None else {"gguf_file": gguf.name}
    with quiet():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **named).eval()


@torch.no_grad()
def log_probabilities(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Of every word after every token: [windows, tokens, words], float32."""
    return torch.cat([torch.log_softmax(model(one[None], use_cache=False).logits, -1) for one in windows])


def perplexity(found: torch.Tensor, windows: torch.Tensor) -> float:
    """Of the tokens of the windows, but the first of each."""
    told = found[:, :-1].gather(-1, windows[:, 1:, None]).double()
    return float(torch.exp(-told.mean()))


def llama(file: Path, prompt: list[int], expected: list[int]) -> tuple[str, str]:
    """How many tokens llama.cpp writes as the model did, and how many in a second."""
    opened = Llama(file, 1)
    started = time.perf_counter()
    text = opened.continued(prompt, WRITTEN)
    seconds = time.perf_counter() - started
    same = next(
        (at for at, (a, b) in enumerate(zip(text, expected[len(prompt) :], strict=False)) if a != b),
        len(text),
    )
    return str(same), f"{len(text) / seconds:.0f}"


def of_families() -> None:
    """Small models with noise on every weight, whose float32 answers llama.cpp gives too: what their types change."""
    ids = [*range(40, 60), *(5, 9, 200, 13) * 4]
    print("| kind of model | fp32 | bf16 | fp16 | q8_0 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, values in READ_BY_LLAMA_CPP.items():
        with tempfile.TemporaryDirectory() as name:
            model = noisy_model(Path(name), kind, **values)
            made_tokenizer(Path(name))
            row = []
            for dtype in ("fp32", "bf16", "fp16", "q8_0"):
                write_gguf(Path(name), Path(name) / f"{dtype}.gguf", dtype, "m")
                opened, worst = Llama(Path(name) / f"{dtype}.gguf", model.config.vocab_size), 0.0
                for end in range(len(ids) - 5, len(ids) + 1):
                    own = log_probabilities(model, torch.tensor([ids[:end]]))[0, -1]
                    worst = max(
                        [worst, *(abs(float(own[at]) - one) for at, one in opened.next(ids[:end]).items())]
                    )
                row.append(f"{worst:.0e}")
            print(f"| {kind} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
