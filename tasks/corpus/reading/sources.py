"""The user's configuration of a source, and the part of it on which a slice's bytes depend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from storage.settings import Count, FreeText, LineText, PathText, Real, Settings, execution, identity
from tasks.corpus.reading.where import conditions_of, words_of

TEMPLATE_COLUMN = re.compile(r"\{([^{}\n]+)\}")
"""A column in a template."""


class HubConfig(Settings):
    """A dataset on the Hugging Face hub: one split of one configuration, at one commit."""

    model_config = ConfigDict(title="Hub dataset")

    dataset: str = identity(
        description="Its name on the hub, owner/name.",
        pattern=r"^[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?$",
    )
    name: LineText | None = identity(
        None, description="Configuration of the dataset; null: its only or default one."
    )
    split: str = identity("train", description="Split of the configuration.", pattern=r"^\w+(\.\w+)*$")
    revision: LineText = execution(
        "main",
        min_length=1,
        description="Branch, tag or commit. It is resolved once in a store; the commit is identity, its name is not.",
    )


class LikeConfig(Settings):
    """What the documents of a source have to be like: those of another source of the run, and not those of a third."""

    model_config = ConfigDict(title="Like")

    source: str = identity(
        description="Name of the source whose documents are the examples.", pattern=r"^[a-z0-9_-]+$"
    )
    unlike: str | None = identity(
        None, description="Name of the source that they are told from; null: the first replay source."
    )
    least: Real = identity(
        0.5,
        ge=0,
        le=1,
        description="Least score that is kept; at 0.5 a text is as likely of the one as of the other.",
    )


class SourceConfig(Settings):
    """One source of documents, as written in the configuration file."""

    name: str = identity(
        description="Its name in documents, metrics and reports; decides the documents' ids.",
        pattern=r"^[a-z0-9_-]+$",
    )
    role: Literal["domain", "replay"] = identity(
        description="domain: what the model shall learn; replay: general text, so that it forgets less."
    )
    weight: Real = identity(
        description="Share of the training tokens, relative to the other sources; 0: its held-out documents are "
        "measured, nothing of it is trained on.",
        ge=0,
        le=1e9,
    )
    decay_weight: Real | None = identity(
        None,
        since="0.2",
        description="The same in the decay branch of each budget, to end on the best text; null: as weight.",
        ge=0,
        le=1e9,
    )
    files: tuple[PathText, ...] | None = execution(
        None,
        description="Files or patterns, such as folder/**: parquet, jsonl (plain, gz, zst), txt, documents of all kinds. "
        "Content is identity, paths are not.",
    )
    python_docs: Literal["domain", "general"] | None = identity(
        None, description="The embedded source: documentation of the installed Python, instead of files."
    )
    hub: HubConfig | None = identity(None, description="A dataset on the hub, instead of files.")
    text_field: LineText = identity(
        "text", description="The column or field that holds the text.", min_length=1
    )
    order: Literal["seeded", "as_given"] = identity(
        "seeded",
        description="seeded mixes files and row groups; as_given reads them in the order of `files`.",
    )

    keep_fields: tuple[LineText, ...] | None = identity(
        None,
        since="0.2",
        description="Other fields to carry along with the text, such as url and score; []: none, null: all.",
    )

    template: FreeText | None = identity(
        None,
        since="0.2",
        description="The text of a row of a table (CSV, TSV): columns in braces, such as '{question} {answer}'; null: the "
        "column text_field, or the one that holds texts.",
    )
    like: LikeConfig | None = identity(
        None,
        since="0.2",
        description="Keep what is like the documents of another source, and unlike general text; null: keep all.",
    )
    where: dict[LineText, LineText] = identity(
        default_factory=dict,
        since="0.2",
        description="Conditions on other fields of a row, such as language: en|de, kind: '!= table', date: '>= 2015'; rows "
        "that do not meet them are passed over.",
    )

    max_epochs: Real | None = execution(
        None,
        ge=1,
        le=1e9,
        description="Readings of its text, past which nothing is trained; null: corpus.max_epochs.",
    )

    licence: LineText | None = execution(
        None, min_length=1, description="Licence of the text, such as cc-by-4.0: model cards name it."
    )

    @property
    def branch_weight(self) -> float:
        """Its share of the tokens of a decay branch."""
        return self.weight if self.decay_weight is None else self.decay_weight

    @property
    def reading_weight(self) -> float:
        """Its share of what is read; 0: it is only measured."""
        return self.weight or self.decay_weight or 0.0

    @field_validator("keep_fields", mode="after")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(sorted(set(value)))

    @field_validator("template", mode="after")
    @classmethod
    def _names_a_column(cls, value: str | None) -> str | None:
        if value is not None and not TEMPLATE_COLUMN.search(value):
            raise ValueError(
                "template names no column; write one in braces, such as 'Question: {question}', or leave it out"
            )
        return value

    @field_validator("where", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """What YAML read as a truth value, a number or a date is a condition too, written as a row would have it."""
        if not isinstance(value, dict):
            return value
        plain = {name: words_of(one) for name, one in value.items()}
        if all(isinstance(one, str) for one in plain.values()):
            conditions_of(plain)
        return plain

    @field_validator("files", mode="before")
    @classmethod
    def _one_pattern(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        given = [name for name in ("files", "hub", "python_docs") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ValueError(
                f"source {self.name!r}: give exactly one of files, hub and python_docs ({what} given)"
            )
        if self.files is not None and not self.files:
            raise ValueError(f"source {self.name!r}: files is empty")
        return self


def unlike_of(sources: Sequence[SourceConfig], like: LikeConfig) -> str | None:
    """Name of the source that examples are told from; None if there is none."""
    return like.unlike or next((source.name for source in sources if source.role == "replay"), None)


class IngestConfig(Settings):
    """Everything besides its inputs on which the bytes of a slice depend."""

    name: str = identity(description="The source's name.")
    text_field: str = identity("text", description="The column or field that holds the text.")
    order: Literal["seeded", "as_given"] = identity("seeded", description="Order of files and row groups.")
    python_docs: Literal["domain", "general"] | None = identity(None, description="The embedded source.")
    slice_bytes: Count = identity(description="About so much text a slice, in bytes of UTF-8.", gt=0)
    seed: int = identity(0, description="Seed of the order.")
    max_bad_fraction: float = identity(
        0.01, description="The stage fails where more of the rows than this were set aside.", ge=0, le=1
    )

    keep_fields: tuple[str, ...] | None = identity(
        None, since="0.2", description="Other fields that are carried along; null: all."
    )
    where: dict[str, str] = identity(
        default_factory=dict, since="0.2", description="Conditions on fields; other rows are set aside."
    )

    @classmethod
    def of(
        cls, source: SourceConfig, *, slice_bytes: int, seed: int, max_bad_fraction: float = 0.01
    ) -> IngestConfig:
        """The part of a source's configuration on which ingest depends. Role and weight are not included."""
        return cls(
            name=source.name,
            text_field=source.text_field,
            order=source.order,
            python_docs=source.python_docs,
            slice_bytes=slice_bytes,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
            keep_fields=source.keep_fields,
            where=dict(source.where),
        )
