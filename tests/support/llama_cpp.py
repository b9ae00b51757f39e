"""llama.cpp in this process, through its Python package."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Llama:
    """A GGUF file in llama.cpp, with exact caches and one thread."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        import xllamacpp as llama_cpp

        parameters = llama_cpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 256
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0
        parameters.warmup = False
        parameters.verbosity = 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cache_type_k = parameters.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
        self.server, self.vocabulary = llama_cpp.Server(parameters), vocabulary

    def next(self, prompt: list[int] | str) -> dict[int, float]:
        """Log-probabilities of the token after a prompt; empty where it is a part of a letter, which is not listed."""
        listed = self._asked(prompt, 1)
        return {entry["id"]: entry["logprob"] for entry in listed[0]["top_logprobs"]} if listed else {}

    def continued(self, prompt: list[int], most: int) -> list[int]:
        """The tokens that it writes, the most likely one each time; parts of letters are missing."""
        return [entry["id"] for entry in self._asked(prompt, most)]

    def _asked(self, prompt: list[int] | str, most: int) -> list[dict[str, Any]]:
        answer = self.server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": most,
                "temperature": 0.0,
                "n_probs": self.vocabulary,
                "cache_prompt": False,
            }
        )
        return (answer["choices"][0].get("logprobs") or {}).get("content") or []
