"""The merged models of a run, made of the base, the last budget's model, and what its trunks kept."""

from __future__ import annotations

from collections.abc import Iterator

from flows.dag.call import Build
from flows.dag.requests import Requests
from flows.dag.state import Model, Outcome, TrainingState
from storage.artifact import Artifact
from storage.counts import count_text
from storage.errors import ConfigError, HubUnreachable, Interrupted
from storage.store import Request
from tasks.models.base import readers_of
from tasks.models.checkpoint import kept_of, kept_part
from tasks.models.merge import MergeConfig, Source

CHAT = "instruct"
"""The name of the chat model itself, which is measured beside what is made of it."""


def merges_of(
    ask: Requests, build: Build, outcome: Outcome, line: TrainingState, model: Model
) -> Iterator[Model]:
    """Each model that the section `merge` asks for, made and added to `outcome.merged`. `model` is the last budget's.

    One that fails is kept in `outcome.failed`, and the others are made.
    """
    plan = ask.run.merge
    if not plan.asked:
        return
    assert line.base is not None
    base, adapted = Source(line.base), Source(model.export.part("export"))

    def made(config: MergeConfig, request: Request, tokens: int) -> Iterator[Model]:
        name = f"{model.name}-{config.name}"
        found = _tried(outcome, f"merge of {name}", build, request, model.round, config.name)
        if found is not None:
            outcome.merged.append(Model(name, tokens, found, model.round))
            yield outcome.merged[-1]

    for share in plan.interpolate:
        config = MergeConfig(kind="interpolate", value=share)
        yield from made(config, ask.merge(config, (base, adapted)), model.tokens)
    if plan.average is not None:
        config = MergeConfig(kind="average", value=plan.average)
        kept = _last_kept(outcome, line, plan.average, model)
        if kept:
            yield from made(config, ask.merge(config, kept), kept[-1].tokens_seen or model.tokens)
    if plan.instruct is None:
        return
    try:
        request = ask.chat_model()
    except Exception as error:
        outcome.failed[CHAT] = _of_chat(error)
        return
    chat = _tried(outcome, CHAT, build, request, model.round, CHAT)
    if chat is None:
        return
    outcome.merged.append(Model(CHAT, 0, chat, model.round))
    yield outcome.merged[-1]
    for strength in plan.strength:
        config = MergeConfig(kind="instruct", value=strength)
        models = (base, Source(chat.part("export")), adapted)
        yield from made(config, ask.merge(config, models, readers_of(chat)), model.tokens)


def _tried(
    outcome: Outcome, what: str, build: Build, request: Request, round: int, item: str
) -> Artifact | None:
    try:
        return build(request, round=round, item=item)
    except Interrupted:
        raise
    except Exception as error:
        outcome.failed[what] = _of_chat(error) if what == CHAT else error
        return None


def _of_chat(error: Exception) -> Exception:
    """An error of the chat model's import, which speaks of the field that names a base."""
    if not isinstance(error, ConfigError | HubUnreachable):
        return error
    return type(error)(str(error).replace("model.base", "merge.instruct"), passing=error.passing)


def _last_kept(outcome: Outcome, line: TrainingState, count: int, model: Model) -> tuple[Source, ...]:
    """The last checkpoints that the trunks kept, oldest first; of a trunk that is not made yet, all that it will keep.

    Empty, with the reason in `outcome.failed`, if there are fewer.
    """
    found: list[Source] = []
    for trunk in line.trunks:
        if trunk.estimated:
            return tuple(Source(kept_part(trunk)) for _ in range(count))
        found += [Source(kept_part(trunk), f"kept/tokens-{tokens:015d}") for tokens in kept_of(trunk)]
    if len(found) < count:
        outcome.failed[f"merge of {model.name}-average-{count}"] = ConfigError(
            f"merge.average: {count} checkpoints are to be averaged, and the trunks to {count_text(model.tokens)} kept "
            f"{len(found)}; lower training.keep_every_tokens, or merge.average"
        )
        return ()
    return tuple(found[-count:])
