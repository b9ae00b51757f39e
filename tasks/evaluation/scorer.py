"""Log-likelihoods of answers: the harness's model class with its own batches, and fewer forward passes.

As in the harness: how text becomes tokens, what the context of an answer is, what is cut if both are too long, and
what counts as greedy. Different: texts are tokenized together; a context that several answers share is computed once
(batches.py); rows are sorted by length; the head is applied to scored positions only. Scores agree with the harness's
command line up to rounding. Imports the harness and torch: import it inside `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from storage.errors import BadInput
from tasks.corpus.tokens.begin import BOS, EOS, Begin, begin_id
from tasks.evaluation.batches import WORTH_SHARING, Request, ScoredRow, batches, cut, pieces, rows_of
from tasks.evaluation.resume import ComputedBatches

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
_BATCH_LOGITS = {"cpu": 2**25, "cuda": 2**29}  # values of fp32 logits per batch: 128 MiB and 2 GiB
_PROVEN_WITHIN = 1e-3
"""Maximum difference in nats when sharing is tested. Rounding gives about 1e-5; a leak or a lost token 0.1 or more."""

Likelihood = tuple[float, bool]
"""Log-likelihood of an answer in nats, and whether each of its tokens is the model's most likely one."""


class Scorer(HFLM):
    """The harness's Hugging Face model over a loaded model. `progress` receives tokens computed, total tokens, and the
    unit. With `begin` bos, the begin-of-text token stands before each text, as with the harness's add_bos_token=True."""

    def __init__(
        self,
        model: Any,
        export: Path,
        max_length: int,
        progress: Callable[[int, int, str], None],
        begin: Begin = EOS,
    ) -> None:
        added: dict[str, Any] = {"add_bos_token": True} if begin == BOS else {}
        if added:
            begin_id(export)
        try:
            # tokenizer.json itself, as for the corpus: AutoTokenizer may build another one by the kind of model
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                export, local_files_only=True, trust_remote_code=False, **added
            )
        except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
            raise BadInput(
                f"transformers cannot load the tokenizer in {export} ({str(error).splitlines()[0][:200]}); an export of "
                "Onward needs no remote code"
            ) from error
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=1,
            backend="causal",
            **added,
        )
        self._progress = progress
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}
        self.kept: ComputedBatches | None = None
        """Where the values of batches are kept, so that a killed measurement goes on where it was."""
        self.cut = 0
        """Number of answers longer than the window, in the last call."""
        self.computed = 0
        """Number of tokens that went through the model in the last call, without padding."""
        self.shares = shares_prefixes(model, max_length)
        """Whether a context is computed once for all its answers."""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[Likelihood]:
        """As in the harness, but all texts are first tokenized in a few calls."""
        self._encode_together([request.args for request in requests])
        try:
            return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))
        finally:
            self._encoded.clear()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
        """As in the harness, but uses the texts tokenized together, if they include this one."""
        found = self._encoded.get((string, add_special_tokens)) if not more else None
        if found is None:
            found = list(super().tok_encode(string, add_special_tokens=add_special_tokens, **more))
        return found

    def _encode_together(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Tokenize the texts that the harness will ask for: context with answer, context alone, answer alone.

        Texts that begin with the text of the prefix token are left to the harness, which adds no prefix to them.
        """
        if not self.tokenizer.is_fast:
            return
        opened = self.tokenizer.decode(self.prefix_token_id)
        plain, alone = dict[str, None](), dict[str, None]()
        for context, answer in pairs:
            if context == "":
                alone[answer] = None
            else:
                plain[context + answer] = plain[context.rstrip()] = None
        wanted = [text for text in plain if not text.startswith(opened)]
        usual = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        for texts, flag, options in (
            (wanted, None, usual),
            (list(alone), False, {"add_special_tokens": False}),
        ):
            if texts:
                found = self.tokenizer(texts, return_attention_mask=False, verbose=False, **options)[
                    "input_ids"
                ]
                self._encoded.update({(text, flag): ids for text, ids in zip(texts, found, strict=True)})

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Likelihood]:
        if empty := next((words for words, _, answer in requests if not answer), None):
            raise BadInput(f"the answer {empty[1]!r} has no token of its own, so it cannot be scored")
        parts = [pieces(context, answer, self.max_length) for _, context, answer in requests]
        self.cut = sum(len(one) > 1 for one in parts)
        rows = rows_of([piece for one in parts for piece in one], self.max_length, self.shares)
        kind = self.device.type if self.device.type in _BATCH_TOKENS else "cpu"
        most = max(1, _BATCH_LOGITS[kind] // self.model.config.get_text_config().vocab_size)
        found: dict[Request, Likelihood] = {}
        self.computed, total = 0, sum(row.cost for row in rows)
        with torch.inference_mode(), _head_at_scored(self.model) as wanted:
            for batch in batches(rows, _BATCH_TOKENS[kind], most):
                found.update(self._of_batch(wanted, batch))
                self.computed += sum(row.cost for row in batch)
                self._progress(self.computed, total, "tokens")
        return [
            (sum(found[piece][0] for piece in one), all(found[piece][1] for piece in one)) for one in parts
        ]

    def _of_batch(self, wanted: dict[str, Tensor], batch: list[ScoredRow]) -> dict[Request, Likelihood]:
        asked: list[Request] = [(row.context, answer) for row in batch for answer in row.answers]
        if self.kept is not None and (earlier := self.kept.next()) is not None:
            return {one: (value, greedy) for one, (value, greedy) in zip(asked, earlier, strict=True)}
        found = _likelihoods(self.model, wanted, batch)
        if self.kept is not None:
            self.kept.add([found[one] for one in asked])
        return found


def shares_prefixes(model: Any, length: int) -> bool:
    """Whether several answers after one context, in one row, get the same log-likelihoods as alone.

    This is tested on a row of `length` tokens, not looked up by architecture: attention with a window, or with its own
    positions, does not respect such a mask. The tokens are drawn with a fixed seed.
    """
    if length < 2 * WORTH_SHARING:
        return False
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (length + 4,), generator=torch.Generator().manual_seed(0)).tolist()
    answers = [tuple(tokens[-4:-1]), tuple(tokens[-3:])]
    context = cut(tokens[:-4], answers[0], length)[0]
    together, apart = ScoredRow(context, list(answers)), [ScoredRow(context, [answer]) for answer in answers]
    try:
        with torch.inference_mode(), _head_at_scored(model) as wanted:
            expected = _likelihoods(model, wanted, apart)
            found = _likelihoods(model, wanted, [together])
    except (RuntimeError, ValueError, TypeError):
        return False
    return all(abs(found[one][0] - expected[one][0]) < _PROVEN_WITHIN for one in expected)


@contextmanager
def _head_at_scored(model: Any) -> Iterator[dict[str, Tensor]]:
    """Apply the head only at positions (`rows`, `columns` of the yielded dictionary): hidden [batch, length] → [1,
    scored]."""
    wanted: dict[str, Tensor] = {}

    def pick(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][wanted["rows"], wanted["columns"]].unsqueeze(0), *given[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield wanted
    finally:
        handle.remove()


def _likelihoods(model: Any, wanted: dict[str, Tensor], batch: list[ScoredRow]) -> dict[Request, Likelihood]:
    """One pass over the rows. Padding is on the right, where no scored position sees it."""
    plan = _Plan(batch, model.device)
    wanted.update(rows=plan.rows, columns=plan.columns)
    if batch[0].branches:
        mask = _apart(plan.branch)
        logits = model(
            input_ids=plan.ids, position_ids=plan.positions, attention_mask=mask, use_cache=False
        ).logits
    else:
        logits = model(input_ids=plan.ids, use_cache=False).logits
    logits = logits[0].float()
    picked = logits.gather(1, plan.targets[:, None])[:, 0] - logits.logsumexp(dim=1)
    greedy = (logits.argmax(dim=1) == plan.targets).tolist()
    values, found, start = picked.double().tolist(), {}, 0
    for row in batch:
        for answer in row.answers:
            end = start + len(answer)
            found[row.context, answer] = (sum(values[start:end]), all(greedy[start:end]))
            start = end
    return found


class _Plan:
    """A batch as tensors: tokens, positions and branches [rows, longest]; row, column and target of each scored token."""

    def __init__(self, batch: list[ScoredRow], device: torch.device) -> None:
        longest = max(row.cost for row in batch)
        ids, positions, branch = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(3))
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        for number, row in enumerate(batch):
            length = len(row.context)
            tokens, places, owners = list(row.context), list(range(length)), [0] * length
            for owner, answer in enumerate(row.answers, 1):
                begin = len(tokens)
                columns += [length - 1, *range(begin, begin + len(answer) - 1)]
                targets += answer
                rows += [number] * len(answer)
                tokens += answer[:-1]
                places += range(length, length + len(answer) - 1)
                owners += [owner] * (len(answer) - 1)
            ids[number, : row.cost] = torch.tensor(tokens)
            positions[number, : row.cost] = torch.tensor(places)
            branch[number, : row.cost] = torch.tensor(owners)
            branch[number, row.cost :] = -1
        self.ids, self.positions, self.branch = ids.to(device), positions.to(device), branch.to(device)
        self.rows, self.columns, self.targets = (
            torch.tensor(values, device=device) for values in (rows, columns, targets)
        )


def _apart(branch: Tensor) -> Tensor:
    """Additive mask [rows, 1, length, length]: each position sees the earlier context and earlier tokens of its own
    branch."""
    length = branch.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    seen = before & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    mask = torch.zeros(seen.shape, dtype=torch.float32, device=branch.device)
    return mask.masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]
