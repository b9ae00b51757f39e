"""Slices of a source: what they read, where they stop, and that nothing is lost, read twice or in doubt."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.artifact import Artifact
from storage.errors import ConfigError, StageFailed
from storage.keys import key_inputs, stage_key
from storage.settings import identity_of
from storage.testing import artifact_of, draft_in
from tasks.corpus import ingest
from tasks.corpus.documents import read_documents
from tasks.corpus.ingest import FileDigests, IngestConfig, SlicePlan, SourceConfig, plan_slice
from tasks.corpus.reading import ingest_shard, streams
from tests.support.corpus.sources import config_of, digests, documents, source_of

MEMORY = FileDigests(None)


def slices(source: SourceConfig, config: IngestConfig, base: Path, store: Path) -> list[Artifact]:
    """All slices of a source, through a real store."""
    made: list[Artifact] = []
    while plan := plan_slice(config, source, made[-1].part("cursor") if made else None, base, MEMORY):
        made.append(artifact_of(ingest, config, plan.inputs, store))
        assert len(made) < 400
    return made


def dropped(artifact: Artifact) -> list[dict]:
    return pq.read_table(artifact.part("dropped").only()).to_pylist()


def conserved(artifact: Artifact) -> bool:
    """Counted again from the files, not from the stage's own sums."""
    stats = artifact.stats
    out, aside = documents([artifact]), dropped(artifact)
    return (
        stats["documents_in"] == out.num_rows + len(aside)
        and stats["documents_out"] == out.num_rows
        and stats["documents_dropped"] == len(aside) == sum(stats["dropped_by_reason"].values())
        and stats["bytes_out"] == sum(len(text.encode()) for text in out["text"].to_pylist())
    )


EVERYTHING = "**/*.[jp]*"


def test_a_slice_that_holds_all_gives_every_document_once(corpus: Path, tmp_path: Path) -> None:
    source = source_of(EVERYTHING)
    (artifact,) = slices(source, config_of(source), corpus, tmp_path / "store")
    table = documents([artifact])
    assert table.num_rows == 300 == len(set(table["id"].to_pylist())) == len(set(table["text"].to_pylist()))
    assert set(table["source"].to_pylist()) == {"books"}
    assert all(json.loads(meta)["row"] == int(text.split()[1]) for text, meta in rows_of(table))
    assert artifact.stats["exhausted"] and artifact.stats["files"] == 6 and conserved(artifact)
    assert dropped(artifact) == []


def rows_of(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["text"].to_pylist(), table["meta"].to_pylist(), strict=True)


@pytest.mark.parametrize("slice_bytes", [1, 9_000, 40_000, 170_000])
def test_slices_of_any_size_read_the_same_stream(corpus: Path, tmp_path: Path, slice_bytes: int) -> None:
    source = source_of(EVERYTHING if slice_bytes > 1 else "deep/e*")
    (whole,) = slices(source, config_of(source), corpus, tmp_path / "whole")
    parts = slices(source, config_of(source, slice_bytes), corpus, tmp_path / "parts")
    assert all(map(conserved, parts))
    assert documents(parts).sort_by("id").equals(documents([whole]).sort_by("id"))
    sizes = [artifact.stats["bytes_out"] for artifact in parts]
    assert max(sizes) < slice_bytes + 1100
    assert [artifact.stats["slice"] for artifact in parts] == list(range(1, len(parts) + 1))
    last = json.loads(parts[-1].part("cursor").only().read_text())
    assert last["exhausted"] and last["rows"] == last["documents"] == documents([whole]).num_rows


def test_order_as_given_reads_files_one_after_the_other(corpus: Path, tmp_path: Path) -> None:
    source = source_of("d.jsonl", "a.parquet", "c.jsonl", order="as_given")
    parts = slices(source, config_of(source, 33_000), corpus, tmp_path / "store")
    texts = documents(parts)["text"].to_pylist()
    assert [text.split()[:2] for text in texts] == [[name, str(row)] for name in "dac" for row in range(50)]


def test_a_seeded_first_slice_mixes_files_and_depends_on_the_seed(tmp_path: Path) -> None:
    for name in range(8):
        rows = [{"text": f"book{name} {row} " + "x" * 100} for row in range(400)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=40)
    source = source_of("*.parquet")

    def books(seed: int) -> tuple[str, ...]:
        config = config_of(source, 80_000, seed=seed)
        plan = plan_slice(config, source, None, tmp_path, MEMORY)
        assert plan is not None
        return tuple(unit["name"] for unit in plan.inputs.reading["units"])

    assert all(len(set(books(seed))) >= 4 for seed in range(20))
    assert len({books(seed) for seed in range(20)}) == 20
    assert books(3) == books(3)


def test_large_files_of_lines_are_read_in_stretches(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of("*.jsonl")
    whole = documents(slices(source, config_of(source), corpus, tmp_path / "whole"))
    monkeypatch.setattr(streams, "SPAN_BYTES", 10_000)
    parts = slices(source, config_of(source, 30_000), corpus, tmp_path / "parts")
    assert set(documents(parts)["text"].to_pylist()) == set(whole["text"].to_pylist())
    assert documents(parts).num_rows == len(set(documents(parts)["id"].to_pylist())) == 100
    first = {text.split()[0] for text in documents(parts[:1])["text"].to_pylist()}
    assert first == {"c", "d"}


def test_files_of_documents_are_cut_by_text_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_shard, "PIECE_BYTES", 20_000)
    source = source_of(EVERYTHING)
    (artifact,) = slices(source, config_of(source), corpus, tmp_path / "store")
    files = artifact.part("documents").files
    sizes = [sum(map(len, read_documents([artifact.path / file])["text"].to_pylist())) for file in files]
    assert len(files) > 12 and max(sizes) < 21_100
    assert len({Path(file).parent.name for file in files}) == len(files)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 3_000)
    monkeypatch.setattr("tasks.corpus.reading.parquet._BATCH_BYTES", 3_000)
    (again,) = slices(source, config_of(source), corpus, tmp_path / "again")
    assert digests(again) == digests(artifact)


def test_the_key_holds_content_and_rules_but_neither_role_weight_nor_unread_files(corpus: Path) -> None:
    def key(source: SourceConfig, config: IngestConfig | None = None) -> str:
        config = config or config_of(source, 60_000)
        plan = plan_slice(config, source, None, corpus, FileDigests(None))
        assert plan is not None
        return stage_key("ingest", 1, identity_of(config), key_inputs(plan.inputs))

    source = source_of("?.parquet")
    before = key(source)
    assert key(source_of("?.parquet", role="replay", weight=3)) == before
    assert key(source_of(str(corpus / "?.parquet"))) == before
    assert key(source_of("?.parquet", name="other")) != before
    assert key(source, config_of(source, 60_001)) != before
    plan = plan_slice(config_of(source, 20_000), source, None, corpus, FileDigests(None))
    assert plan is not None and len(plan.inputs.files) == 1  # one row group is enough: only its file counts
    unread = ({"a.parquet", "b.parquet"} - {plan.inputs.files[0]["name"]}).pop()
    small = key(source, config_of(source, 20_000))
    table = pq.read_table(corpus / unread)
    swapped = table.slice(1).append_column("new", table["row"].slice(1)) if unread == "b.parquet" else None
    if swapped is not None:
        pq.write_table(swapped, corpus / unread)
        assert key(source, config_of(source, 20_000)) == small
    read = plan.inputs.files[0]["name"]
    (corpus / read).write_bytes((corpus / read).read_bytes().replace(b"word", b"Word", 1))
    assert key(source, config_of(source, 20_000)) != small


def test_files_that_come_later_are_not_read_and_missing_ones_are_named(corpus: Path, tmp_path: Path) -> None:
    source = source_of("*.jsonl")
    config = config_of(source, 50_000)
    plan = plan_slice(config, source, None, corpus, MEMORY)
    assert plan is not None
    first = artifact_of(ingest, config, plan.inputs, tmp_path / "store")
    (corpus / "new.jsonl").write_text('{"text": "new"}\n')
    later = plan_slice(config, source, first.part("cursor"), corpus, MEMORY)
    assert later is not None and "new.jsonl" in later.warnings[0]
    second = artifact_of(ingest, config, later.inputs, tmp_path / "store")
    assert second.manifest.provenance["warnings"] == list(later.warnings)
    assert "new" not in documents([second])["text"].to_pylist()
    unread = next(
        name for name in ("c.jsonl", "d.jsonl") if name not in {f["name"] for f in plan.inputs.files}
    )
    (corpus / unread).rename(corpus / "gone")
    with pytest.raises(ConfigError, match=f"{unread}.*missing"):
        plan_slice(config_of(source), source, first.part("cursor"), corpus, MEMORY)


def test_a_file_that_changed_between_slices_is_refused(corpus: Path, tmp_path: Path) -> None:
    source = source_of("c.jsonl")
    config = config_of(source, 20_000)
    plan = plan_slice(config, source, None, corpus, MEMORY)
    assert plan is not None
    first = artifact_of(ingest, config, plan.inputs, tmp_path / "store")
    (corpus / "c.jsonl").write_bytes((corpus / "c.jsonl").read_bytes().replace(b"word", b"Word"))
    with pytest.raises(ConfigError, match=r"c\.jsonl is no longer the file"):
        plan_slice(config, source, first.part("cursor"), corpus, FileDigests(None))
    with (corpus / "c.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(StageFailed, match="has changed since this slice was planned"):
        ingest.run(config, plan.inputs, draft_in(tmp_path))


def test_names_of_files(corpus: Path, tmp_path: Path) -> None:
    def names(*patterns: str) -> list[str]:
        source = source_of(*patterns)
        plan = plan_slice(config_of(source), source, None, corpus, MEMORY)
        assert plan is not None
        return sorted(file["name"] for file in plan.inputs.files)

    assert names("*.jsonl") == ["c.jsonl", "d.jsonl"]
    assert names(str(corpus / "deep/*")) == ["e.jsonl.gz", "f.jsonl"]
    assert names("**/*.jsonl") == ["c.jsonl", "d.jsonl", "deep/f.jsonl"]
    assert names("*.jsonl", "deep/*.jsonl") == ["0/c.jsonl", "0/d.jsonl", "1/f.jsonl"]
    assert names("c.jsonl", "*.jsonl") == ["c.jsonl", "d.jsonl"]
    (corpus / "odd [1] ü.jsonl").write_text('{"text": "x"}')
    assert names("odd [1] ü.jsonl") == ["odd [1] ü.jsonl"]
    with pytest.raises(ConfigError, match=r"source 'books': 'nothing/\*' matches no file"):
        names("nothing/*")
    with pytest.raises(ConfigError, match="it is a directory"):
        names("deep")
    Path(os.fsdecode(os.fsencode(corpus) + b"/\xff.jsonl")).write_text("{}")
    with pytest.raises(ConfigError, match="is no UTF-8; rename the file"):
        names("*.jsonl")


def test_a_source_has_exactly_one_origin() -> None:
    with pytest.raises(
        ValidationError, match=r"source 'books': give exactly one of files, hub and python_docs"
    ):
        source_of("a", python_docs="domain")
    with pytest.raises(ValidationError, match=r"source 'books'.*none given"):
        SourceConfig(name="books", role="domain", weight=1)
    with pytest.raises(ValidationError, match="name"):
        source_of("a", name="Upper Case")
    assert source_of("a").model_copy(update={"files": None}).files is None
    assert SourceConfig(name="one", role="replay", weight=1, files="x*").files == ("x*",)


def test_bad_rows_are_set_aside_with_reason_and_place(shared_data: Path, tmp_path: Path) -> None:
    source = source_of(str(shared_data / "edu/part-00007.jsonl.gz"), str(shared_data / "bad/malformed.jsonl"))
    config = config_of(source, max_bad_fraction=0.2)
    (artifact,) = slices(source, config, tmp_path, tmp_path / "store")
    aside = dropped(artifact)
    assert conserved(artifact) and len(aside) == 18
    assert artifact.stats["dropped_by_reason"] == {
        "malformed_json": 11,
        "not_an_object": 4,
        "text_not_string": 3,
    }
    assert {row["stage"] for row in aside} == {"ingest"} and {row["source"] for row in aside} == {"books"}
    assert aside[0]["detail"].startswith("1/malformed.jsonl:2: ")
    ids = {row["id"] for row in aside}
    assert None not in ids and len(ids) == 18 and not ids & set(documents([artifact])["id"].to_pylist())
    warning = artifact.manifest.provenance["warnings"][0]
    assert "set aside 18" in warning and "malformed.jsonl:2" in warning


def test_all_broken_files_together_lose_nothing_uncounted(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "bad", tmp_path / "bad")
    (tmp_path / "bad/expected.json").unlink()
    source = source_of(str(tmp_path / "bad/**/*"))
    config = config_of(source, "100M", max_bad_fraction=1.0)
    (artifact,) = slices(source, config, tmp_path, tmp_path / "store")
    assert conserved(artifact)
    assert (
        artifact.stats["documents_out"]
        == 49 + 10 + 9 + 1 + 100 + 1 + 2 + 2 + 10 + 24 + 200 + 3 + 1 + 45 + 51 + 66 + 3
    )
    parts = slices(source, config_of(source, "200K", max_bad_fraction=1.0), tmp_path, tmp_path / "parts")
    assert all(map(conserved, parts)) and len(parts) > 5
    assert documents(parts).sort_by("id").equals(documents([artifact]).sort_by("id"))
    key = lambda row: (row["reason"], row["detail"])  # noqa: E731
    assert sorted((row for part in parts for row in dropped(part)), key=key) == sorted(
        dropped(artifact), key=key
    )


def test_too_much_bad_input_fails_and_names_the_first_ten(shared_data: Path, tmp_path: Path) -> None:
    source = source_of(str(shared_data / "bad/malformed.jsonl"))
    with pytest.raises(StageFailed) as failure:
        slices(source, config_of(source), tmp_path, tmp_path / "store")
    message = str(failure.value)
    assert (
        "18 of 42 rows" in message
        and message.count("malformed.jsonl:") == 10
        and "max_bad_fraction" in message
    )


@pytest.mark.parametrize("bad", [1, 2, 7, 29, 50])
def test_who_allows_as_many_bad_rows_as_the_message_says_goes_on(tmp_path: Path, bad: int) -> None:
    rows = [b"no json"] * bad + [orjson.dumps({"text": f"text {n}"}) for n in range(100 - bad)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    source = source_of("a.jsonl")
    with pytest.raises(StageFailed, match=rf"{bad} of 100 rows had to be set aside") as failure:
        slices(source, config_of(source, max_bad_fraction=0.001), tmp_path, tmp_path / "store")
    advised = re.search(r"or raise corpus\.max_bad_fraction to ([0-9.]+)$", str(failure.value))
    assert advised is not None, str(failure.value)
    config = config_of(source, max_bad_fraction=float(advised[1]))
    (artifact,) = slices(source, config, tmp_path, tmp_path / "store")
    assert conserved(artifact) and artifact.stats["documents_out"] == 100 - bad


def test_who_names_the_column_that_the_message_shows_goes_on(tmp_path: Path) -> None:
    """Where most rows are bad, to allow them is not advised: the text is in another column."""
    rows = [orjson.dumps({"body": f"text {n}"}) for n in range(60)]
    rows += [orjson.dumps({"text": f"text {n}"}) for n in range(40)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    source = source_of("a.jsonl")
    with pytest.raises(StageFailed, match="60 of 100 rows had to be set aside") as failure:
        slices(source, config_of(source), tmp_path, tmp_path / "store")
    told = str(failure.value)
    assert told.endswith("set text_field to the column with the text") and "body" in told
    rows = rows[:60]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    source = source_of("a.jsonl", text_field="body")
    (artifact,) = slices(source, config_of(source), tmp_path, tmp_path / "store")
    assert artifact.stats["documents_out"] == 60


def test_a_source_of_which_nothing_can_be_read_fails_always(shared_data: Path, tmp_path: Path) -> None:
    source = source_of(
        str(shared_data / "bad/wrong_column.parquet"), str(shared_data / "bad/truncated.parquet")
    )
    with pytest.raises(StageFailed, match="nothing could be read") as failure:
        slices(source, config_of(source, max_bad_fraction=1.0), tmp_path, tmp_path / "store")
    assert "it has id, content (set text_field)" in str(failure.value)


def test_an_unreadable_file_among_good_ones_is_passed_over(shared_data: Path, tmp_path: Path) -> None:
    source = source_of(
        str(shared_data / "edu/part-00007.jsonl.gz"), *(str(shared_data / f"bad/{name}") for name in
        ("truncated.parquet", "zero_bytes.parquet", "bitflip.parquet"))
    )  # fmt: skip
    (artifact,) = slices(source, config_of(source, max_bad_fraction=0.02), tmp_path, tmp_path / "store")
    assert conserved(artifact)
    assert [row["id"] for row in dropped(artifact)] == [None] * 3
    assert next(row["value"] for row in dropped(artifact) if "bitflip" in row["detail"]) == 50


def empty_files(base: Path, kind: str) -> None:
    """Four files without text, of one kind each, and how they are named."""
    for number, name in enumerate(("a", "m", "s", "z")):
        path = base / f"{name}.{kind}"
        nothing = [b"", b"\n \xc2\xa0\n", b"\xef\xbb\xbf", b""][number]
        if kind == "parquet":
            pq.write_table(pa.table({"text": pa.array([[], [""], [" "], ["\t"]][number], pa.string())}), path)
        elif kind == "jsonl":
            path.write_bytes([b"", b'{"text": ""}\n', b'{"text": " \\n"}\n', b"\n\n"][number])
        elif kind == "txt.gz":
            path.write_bytes(gzip.compress(nothing))
        else:
            path.write_bytes(nothing)


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "parquet"])
def test_empty_files_among_others_are_rows_of_no_text(tmp_path: Path, kind: str) -> None:
    empty_files(tmp_path, kind)
    for number in range(56):
        (tmp_path / f"n{number:02}.txt").write_text(f"text {number} of the notes")
    for order, slice_bytes in (("as_given", "10M"), ("seeded", "10M"), ("as_given", 300), ("seeded", 300)):
        source = source_of("*.*", order=order)
        config = config_of(source, slice_bytes)
        made = slices(source, config, tmp_path, tmp_path / "store")
        assert all(map(conserved, made)) and (len(made) > 3) == (slice_bytes == 300)
        assert sum(one.stats["documents_out"] for one in made) == 56
        assert {row["reason"] for one in made for row in dropped(one)} <= {"empty_file", "empty_text"}
    with (tmp_path / "n00.txt").open("wb") as file:
        file.write(b"\xff is no text")
    with pytest.raises(StageFailed, match=r"1 of \d+ rows had to be set aside"):
        slices(source, config_of(source), tmp_path, tmp_path / "store")


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "parquet"])
@pytest.mark.parametrize("most", [0.01, 1.0])
def test_a_source_of_which_all_is_empty_fails_in_one_sentence(tmp_path: Path, kind: str, most: float) -> None:
    empty_files(tmp_path, kind)
    source = source_of("*")
    with pytest.raises(StageFailed, match="no text is in it") as failure:
        slices(source, config_of(source, max_bad_fraction=most), tmp_path, tmp_path / "store")
    assert "or leave the source out" in str(failure.value)


def test_more_empty_rows_than_documents_are_bad(tmp_path: Path) -> None:
    """A column with the name of the text, of which most is empty, is not the text."""
    for count, fails in ((50, False), (51, True)):
        rows = [{"text": "", "body": "the text"}] * count + [{"text": "some text"}] * 50
        path = tmp_path / str(count) / "a.jsonl"
        path.parent.mkdir()
        path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        source = source_of("*")
        if fails:
            with pytest.raises(StageFailed, match="51 of 101 rows had to be set aside"):
                slices(source, config_of(source), path.parent, tmp_path / "store")
        else:
            (artifact,) = slices(source, config_of(source), path.parent, tmp_path / "store")
            assert conserved(artifact) and artifact.stats["documents_out"] == 50


def test_a_cursor_says_what_was_empty_only_where_it_decided(tmp_path: Path) -> None:
    """So that a slice that passed before has the bytes that it had."""
    for empty, told in ((1, None), (3, 3)):
        rows = [{"text": "some text"}] * 100 + [{"text": " "}] * empty
        path = tmp_path / str(empty) / "a.jsonl"
        path.parent.mkdir()
        path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        source = source_of("*")
        (artifact,) = slices(source, config_of(source), path.parent, tmp_path / "store")
        assert orjson.loads(artifact.part("cursor").only().read_bytes()).get("empty") == told


TEXTS = st.lists(st.one_of(st.text(min_size=1, max_size=40), st.none(), st.integers(0, 9)), max_size=25)


@given(
    files=st.lists(TEXTS, min_size=1, max_size=4), slice_bytes=st.integers(60, 400), group=st.integers(1, 9)
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_source_in_any_slices_is_conserved(
    tmp_path_factory: pytest.TempPathFactory, files: list, slice_bytes: int, group: int
) -> None:
    base = tmp_path_factory.mktemp("any")
    for number, texts in enumerate(files):
        if number % 2:
            strings = [text if isinstance(text, str) else None for text in texts]
            table = pa.table({"text": pa.array(strings, pa.string())})
            pq.write_table(table, base / f"{number}.parquet", row_group_size=group)
        else:
            (base / f"{number}.jsonl").write_bytes(b"\n".join(orjson.dumps({"text": text}) for text in texts))
    source = source_of("*")
    config = config_of(source, slice_bytes, max_bad_fraction=1.0)
    try:
        parts = slices(source, config, base, base / "store")
    except StageFailed as failure:  # no text in any of the files
        assert "no text is in it" in str(failure) or "nothing could be read" in str(failure)
        return
    assert all(map(conserved, parts))
    files_aside = sum(row["id"] is None for part in parts for row in dropped(part))
    assert sum(part.stats["documents_in"] for part in parts) == sum(map(len, files)) + files_aside
    ids = documents(parts)["id"].to_pylist() + [row["id"] for p in parts for row in dropped(p) if row["id"]]
    assert len(ids) == len(set(ids))


def test_digests_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    true = ingest.FileDigests.__module__

    def counting(path: Path) -> str:
        hashed.append(path)
        return real(path)

    module = sys.modules[true]
    real = module.sha256_file
    settled = [True]
    monkeypatch.setattr(module, "sha256_file", counting)
    monkeypatch.setattr(module, "_settled", lambda changed: settled[0])
    file = tmp_path / "data.bin"
    file.write_bytes(b"one")
    first = FileDigests(tmp_path / "state" / "digests.sqlite").sha256(file)
    assert FileDigests(tmp_path / "state" / "digests.sqlite").sha256(file) == first and len(hashed) == 1
    file.write_bytes(b"two")
    settled[0] = False
    assert FileDigests(tmp_path / "state" / "digests.sqlite").sha256(file) != first
    assert FileDigests(tmp_path / "state" / "digests.sqlite").sha256(file) != first
    assert len(hashed) == 3  # changed a moment ago: not yet trusted
    (tmp_path / "state" / "digests.sqlite").write_bytes(b"no database" * 100)
    assert FileDigests(tmp_path / "state" / "digests.sqlite").sha256(file) == real(file)


@pytest.mark.slow
def test_the_longest_document_that_is_read(tmp_path: Path) -> None:
    text = "A line of a very long book.\n" * 571_428  # 16 MB less a few bytes
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text":"before"}\n' + orjson.dumps({"text": text}) + b'\n{"text":"after"}\n'
    )
    source = source_of("a.jsonl")
    made = slices(source, config_of(source, "64M"), tmp_path, tmp_path / "store")
    table = documents(made)
    assert sorted(table["text"].to_pylist(), key=len) == ["after", "before", text]
    assert all(map(conserved, made))


def test_plans_are_plain_frozen_values(corpus: Path) -> None:
    source = source_of("*.jsonl")
    plan = plan_slice(config_of(source, 1000), source, None, corpus, MEMORY)
    assert isinstance(plan, SlicePlan) and plan.number == 1 and not plan.last and plan.estimated_bytes >= 1000
    json.dumps(dataclasses.asdict(plan.inputs))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.number = 2  # type: ignore[misc]
