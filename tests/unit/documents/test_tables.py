"""What of a table is text: a column that is asked for, a template of columns, or what the cells tell."""

from __future__ import annotations

import io

import pytest

from tasks.documents.document import Columns, Document
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
