"""Log-likelihoods of answers: the harness's model class with its own batches, and fewer forward passes.

As in the harness: how text becomes tokens, what the context of an answer is, what is cut if both are too long, and
what counts as greedy. Different: texts are tokenized together; a context that several answers share is computed once
(batches.py); rows are sorted by length; the head is applied to scored positions only. Scores agree with the harness's
command line up to rounding. Imports the harness and torch: import it inside `run`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from storage.errors import BadInput
from tasks.corpus.tokens.begin import BOS, EOS, Begin, begin_id
from tasks.evaluation.batches import WORTH_SHARING, Request, ScoredRow, Unit, cut, pieces, rows_of, units_of
from tasks.evaluation.passes import Positions, computed, head_at_scored, log_likelihoods
from tasks.evaluation.resume import ComputedBatches

_BATCH_TOKENS = {"cpu": 512, "cuda": 65_536}  # of a CPU's batch, a thread keeps the activations in its caches
_BATCH_LOGITS = {"cpu": 2**24, "cuda": 2**29}  # values of logits per batch: 64 MiB and 2 GiB of fp32
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
        self.shares = Shares()
        """What was computed once for several requests in the last call."""

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
        units = self._units([piece for one in parts for piece in one])
        found: dict[Request, Likelihood] = {}
        self.computed, total = 0, sum(unit.cost for unit in units)
        for unit, values, told in self._of_units(units):
            for one, (value, greedy) in zip(_asked(unit), values, strict=True):
                found[one] = (value, greedy)
            self.computed += unit.cost
            if told:
                self._progress(self.computed, total, "tokens")
        return [
            (sum(found[piece][0] for piece in one), all(found[piece][1] for piece in one)) for one in parts
        ]

    def _units(self, asked: Sequence[Request]) -> list[Unit]:
        """The plan: with what the model shares, where that saves more than it costs to prove it."""
        kind = self.device.type if self.device.type in _BATCH_TOKENS else "cpu"
        most = max(1, _BATCH_LOGITS[kind] // self.model.config.get_text_config().vocab_size)

        def planned(shares: Shares) -> list[Unit]:
            rows = rows_of(asked, self.max_length, shares.answers)
            return units_of(rows, _BATCH_TOKENS[kind], most, shares.beginnings)

        apart, together = planned(Shares()), planned(Shares(True, True))
        longest = max((len(context) + len(answer) - 1 for context, answer in asked), default=0)
        saved = sum(unit.cost for unit in apart) - sum(unit.cost for unit in together)
        self.shares = Shares()
        if saved > 2 * longest:
            earlier = self.kept.next() if self.kept is not None else None
            self.shares = Shares(*earlier) if earlier else shares_of(self.model, longest)
            if self.kept is not None and not earlier:
                self.kept.add([self.shares.answers, self.shares.beginnings])
        if self.shares == Shares(True, True):
            return together
        return planned(self.shares) if self.shares.answers else apart

    def _of_units(self, units: list[Unit]) -> Iterator[tuple[Unit, Sequence[Sequence[Any]], bool]]:
        """Each unit with its answers' log-likelihoods, and whether to report it. Those of an earlier attempt come first; of
        them the last is reported, as the time left is reckoned from the first report."""
        earlier = list(islice(iter(self.kept.next, None), len(units))) if self.kept is not None else []
        for unit, values in zip(units, earlier, strict=False):
            yield unit, values, unit is units[len(earlier) - 1]
        left = units[len(earlier) :]
        with head_at_scored(self.model) as wanted:
            made = computed(self.model, left, lambda unit: _likelihoods(self.model, wanted, unit))
            for unit, values in zip(left, made, strict=True):
                if self.kept is not None:
                    self.kept.add(values)
                yield unit, values, True


def _asked(unit: Unit) -> Iterator[Request]:
    """The requests of a unit, in the order of their values."""
    return ((row.context, answer) for batch in unit.batches for row in batch for answer in row.answers)


@dataclass(frozen=True)
class Shares:
    """What a model computes once for several requests, with the same log-likelihoods as without."""

    answers: bool = False
    """A context for all its answers, which follow it in one row under a mask."""
    beginnings: bool = False
    """The beginning of several contexts, from which rows go on."""


def shares_of(model: Any, length: int) -> Shares:
    """What a model can share, found by trying it on rows of `length` tokens.

    It is not looked up by architecture. Attention with a window, or with its own positions, does not respect a mask of
    ours; layers with a state have nothing to go on from. The tokens are drawn with a fixed seed. It is tried in fp32,
    where rounding is far from what a leak would change.
    """
    if length < 2 * WORTH_SHARING:
        return Shares()
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (length + 4,), generator=torch.Generator().manual_seed(0)).tolist()
    answers = [tuple(tokens[-4:-1]), tuple(tokens[-3:])]
    context = cut(tokens[:-4], answers[0], length)[0]
    begun = len(context) // 2
    alone = Unit((), [[ScoredRow(context, [answers[1]])]])
    together = Unit((), [[ScoredRow(context, list(answers))]])
    after = Unit(context[:begun], [[ScoredRow(context, list(answers), begun)]])
    if model.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    with head_at_scored(model) as wanted:

        def value(unit: Unit) -> float:
            """Of the last answer: it follows another one where the context is shared."""
            try:
                return _likelihoods(model, wanted, unit)[-1][0]
            except _REFUSED:
                if unit is alone:
                    raise
                return math.nan

        expected, found = computed(model, [alone, after], value)
        if abs(found - expected) < _PROVEN_WITHIN:
            return Shares(answers=True, beginnings=True)
        [found] = computed(model, [together], value)
        return Shares(answers=abs(found - expected) < _PROVEN_WITHIN)


_REFUSED = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What models raise that cannot be asked so."""


class _Begun(DynamicLayer):
    """A layer's keys and values [1, heads, tokens, width] of a beginning. Each row goes on from it; nothing is added."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The beginning's keys and values and those of the rows after it: [rows, heads, tokens, width]."""
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def _read(model: Any, wanted: Positions, beginning: tuple[int, ...]) -> DynamicCache:
    """The keys and values of a beginning, for rows to go on from. Raises TypeError if the model keeps something else."""
    ids = torch.tensor([beginning], device=model.device)
    wanted.rows = wanted.columns = torch.zeros(1, dtype=torch.long, device=model.device)
    kept = model(input_ids=ids, use_cache=True).past_key_values
    if type(kept) is not DynamicCache:
        raise TypeError("the model keeps more than keys and values")
    layers: list[Any] = kept.layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise TypeError("a layer keeps more than keys and values")
    if any(layer.keys.shape[-2] != len(beginning) for layer in layers):
        raise TypeError("a layer keeps the end of what it has read")
    kept.layers = [_Begun(layer.keys, layer.values) for layer in layers]
    return kept


def _likelihoods(model: Any, wanted: Positions, unit: Unit) -> list[Likelihood]:
    """The values of a unit's answers, in its order."""
    begun = _read(model, wanted, unit.beginning) if unit.beginning else None
    return [found for batch in unit.batches for found in _of_batch(model, wanted, batch, begun)]


def _of_batch(
    model: Any, wanted: Positions, batch: list[ScoredRow], begun: DynamicCache | None
) -> Iterator[Likelihood]:
    """One pass over the rows. Padding is on the right, where no scored position sees it."""
    plan = _Plan(batch, model.device)
    wanted.rows, wanted.columns = plan.rows, plan.columns
    how: dict[str, Any] = {"use_cache": False}
    if begun is not None:
        how = {"use_cache": True, "past_key_values": begun}
    if begun is not None or batch[0].branches:
        mask = _apart(plan.branch, batch[0].begun, model.dtype)
        how |= {"position_ids": plan.positions, "attention_mask": mask}
    logits = model(input_ids=plan.ids, **how).logits[0]
    values, greedy = log_likelihoods(logits, plan.targets)
    start = 0
    for row in batch:
        for answer in row.answers:
            end = start + len(answer)
            yield sum(values[start:end]), all(greedy[start:end])
            start = end


class _Plan:
    """A batch as tensors: tokens, positions and branches [rows, longest]; row, column and target of each scored token."""

    def __init__(self, batch: list[ScoredRow], device: torch.device) -> None:
        longest = max(row.cost for row in batch)
        ids, positions, branch = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(3))
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        for number, row in enumerate(batch):
            length = len(row.context) - row.begun
            tokens, places, owners = list(row.context[row.begun :]), list(range(length)), [0] * length
            for owner, answer in enumerate(row.answers, 1):
                begin = len(tokens)
                columns += [length - 1, *range(begin, begin + len(answer) - 1)]
                targets += answer
                rows += [number] * len(answer)
                tokens += answer[:-1]
                places += range(length, length + len(answer) - 1)
                owners += [owner] * (len(answer) - 1)
            ids[number, : row.cost] = torch.tensor(tokens)
            positions[number, : row.cost] = torch.tensor(places) + row.begun
            branch[number, : row.cost] = torch.tensor(owners)
            branch[number, row.cost :] = -1
        self.ids, self.positions, self.branch = ids.to(device), positions.to(device), branch.to(device)
        self.rows, self.columns, self.targets = (
            torch.tensor(values, device=device) for values in (rows, columns, targets)
        )


def _apart(branch: Tensor, begun: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [rows, 1, length, begun + length]: each position sees all that was computed before, the earlier
    context, and earlier tokens of its own branch."""
    length = branch.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    seen = before & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    mask = torch.zeros((len(branch), length, begun + length), dtype=dtype, device=branch.device)
    mask[:, :, begun:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None]
