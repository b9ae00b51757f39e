"""What of a table is text: a column that is asked for, a template of columns, or what the cells tell."""

from __future__ import annotations

import io

import pytest

from tasks.corpus.reading.sources import SourceConfig
from tasks.documents.document import Columns, Document, Lost
from tasks.documents.read import read

TABLE = b"""id,question,answer,source
1,Who?,"Ann, of course",book
2,When?,On Monday,letter
3,,,
"""


def documents(data: bytes, columns: Columns) -> list[Document]:
    return [one for one in read(io.BytesIO(data), "a.csv", columns=columns) if isinstance(one, Document)]


def test_a_template_makes_a_text_of_each_row():
    plain = documents(TABLE, Columns(template="Q: {question}\nA: {Answer}"))
    assert [one.text for one in plain[:2]] == ["Q: Who?\nA: Ann, of course", "Q: When?\nA: On Monday"]
    assert plain[0].meta == {
        "id": "1",
        "question": "Who?",
        "answer": "Ann, of course",
        "source": "book",
        "encoding": "utf-8",
    }


@pytest.mark.parametrize("columns", [Columns("answer"), Columns("ANSWER")])
def test_a_column_that_is_asked_for(columns: Columns):
    assert [one.text for one in documents(TABLE, columns)][:2] == ["Ann, of course", "On Monday"]


@pytest.mark.parametrize(
    "columns", [Columns(), Columns("nothing"), Columns(template="{nothing}"), Columns(template="x")]
)
def test_without_it_the_table_tells_by_itself(columns: Columns):
    (one,) = documents(TABLE, columns)
    assert one.text.startswith("| id | question | answer | source |")


def test_a_template_with_a_slip_is_told_and_makes_no_table():
    (one,) = read(io.BytesIO(TABLE), "a.csv", columns=Columns(template="{question} {anwser}"))
    assert isinstance(one, Lost) and one.reason == "no_column"
    assert "{anwser}" in one.message and "id, question, answer, source" in one.message


@pytest.mark.parametrize("template", ["text", "", "{}"])
def test_a_template_without_a_column_is_refused(template: str):
    with pytest.raises(ValueError, match="template names no column"):
        SourceConfig(name="a", role="domain", weight=1, files=("a.csv",), template=template)


@pytest.mark.parametrize("columns", [Columns("answer"), Columns(template="{answer}")])
def test_columns_with_the_names_of_meta_get_another(columns: Columns):
    table = b"file,kind,encoding,answer\nx.txt,letter,morse,On Monday\n"
    (one,) = documents(table, columns)
    own = {name: one.meta[name] for name in ("file_", "kind_", "encoding_", "encoding")}
    assert own == {"file_": "x.txt", "kind_": "letter", "encoding_": "morse", "encoding": "utf-8"}


def test_a_table_of_a_head_alone_has_a_fate():
    (one,) = read(io.BytesIO(b"question,answer\n,\n"), "a.csv", columns=Columns(template="{question}"))
    assert isinstance(one, Lost) and (one.place, one.reason) == ("a.csv", "empty")
