"""Spreadsheets (XLSX, XLS, ODS): each sheet a page, its rows a table."""

from __future__ import annotations

from datetime import datetime
from typing import Any, BinaryIO

from tasks.documents.document import Draft, Unreadable
from tasks.documents.tidy import one_line, table, tidy


def read_sheets(file: BinaryIO, most: int) -> Draft:
    """Read the values of all cells; formulas as what they gave. Raises Unreadable: damaged, encrypted, empty."""
    import python_calamine

    try:
        book = python_calamine.CalamineWorkbook.from_filelike(file)
        pages = []
        for name in book.sheet_names:
            try:
                rows = book.get_sheet_by_name(name).to_python(skip_empty_area=True)
            except python_calamine.WorksheetNotFound:
                continue  # a sheet that is a chart
            text = table([[_shown(cell) for cell in row] for row in rows])
            pages.append(tidy(f"## {one_line(name)}\n\n{text}") if text else "")
    except python_calamine.PasswordError as error:
        raise Unreadable("encrypted", "the spreadsheet has a password") from error
    except python_calamine.CalamineError as error:
        raise Unreadable("damaged", f"the spreadsheet cannot be read ({error})") from error
    if not any(pages):
        raise Unreadable("empty", "the spreadsheet has no cell with text")
    return Draft(tuple(pages), paged=True)


def _shown(cell: Any) -> str:
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else repr(round(cell, 10))
    if isinstance(cell, datetime) and not (cell.hour or cell.minute or cell.second):
        return cell.date().isoformat()
    return "" if cell is None else str(cell)
