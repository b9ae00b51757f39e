"""The report as MLflow has it says which run it is of."""

from __future__ import annotations

from pathlib import Path

from flows.tracking.report_pages import with_head
from flows.ui.publish import as_html

ROWS = {"base": "models/a|b", "sources": "notes (domain, 0.9)", "date": "2026-11-30"}


def test_the_head_stands_below_the_title_of_both_files(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text(
        "# What changed\n\nIt got better.\n\n![Loss](figures/loss.svg)\n\nLoss\n"
    )
    (tmp_path / "report.html").write_text(
        "<body>\n<h1>What changed</h1>\n<p>It got better.</p>\n<h1>Again</h1></body>"
    )
    with with_head(tmp_path / "report.md", "demo · 1M", ROWS) as page:
        text = page.read_text()
    assert text.startswith("# What changed\n\n| this run | demo · 1M |\n| --- | --- |\n")
    assert "| sources | notes (domain, 0.9) |" in text and "\n\nIt got better." in text
    assert "](" not in text and "Figure, in report.html" in text
    with with_head(tmp_path / "report.html", "demo <1M>", ROWS) as page:
        text = page.read_text()
    title, _, after = text.partition("</h1>")
    assert title.endswith("What changed") and after.index("demo &lt;1M&gt;") < after.index("It got better")
    assert text.count("demo") == 1
    assert not page.exists() and "demo" not in (tmp_path / "report.html").read_text()


def test_the_report_in_prefect_says_where_it_opens_as_html():
    page = Path("store/runs/report-1/report.html")
    assert (
        as_html(page, None)
        == "As HTML: the file `store/runs/report-1/report.html` of the machine that ran it."
    )
    run = "http://127.0.0.1:5000/#/experiments/1/runs/2"
    assert f"[in MLflow]({run}/artifacts/report/report.html)" in as_html(page, run)
