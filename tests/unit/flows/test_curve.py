"""The training curve of a run at work, and pictures inside pages."""

from __future__ import annotations

import base64
import json
import re
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.ui.curve import Segment, training_page
from flows.ui.publish import with_pictures
from storage.artifact import Artifact
from tasks.pages.canvas import as_svg, save
from tasks.pages.report.facts import Curve
from tasks.pages.report.figures import loss_figure


def rows(first: int, last: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "tokens": 100 * step,
            "loss": 4 - step / 10_000,
            "lr": 1e-3,
            "grad_norm": 1.5,
            "skipped": step == first,
            "tokens_per_second": 1234.5,
            **more,
        }
        for step in range(first, last + 1)
    ]


class Part:
    """An artifact with a journal."""

    def __init__(self, path: Path) -> None:
        self._path, self.path = path, path.parent

    def part(self, name: str) -> Part:
        assert name == "journal"
        return self

    def only(self) -> Path:
        return self._path


def finished(path: Path, steps: list[dict[str, Any]]) -> Any:
    pq.write_table(pa.Table.from_pylist(steps), path)
    return Part(path)


def picture_of(text: str) -> str:
    found = re.search(r"\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", text)
    assert found is not None
    return base64.b64decode(found[1]).decode()


def test_a_curve_of_a_finished_segment_and_of_one_at_work(tmp_path: Path) -> None:
    done: Artifact = finished(tmp_path / "journal.parquet", rows(1, 5000))
    work = tmp_path / "work"
    work.mkdir()
    lines = [json.dumps(row) for row in rows(5001, 5020)]
    (work / "journal.jsonl").write_text("\n".join(lines) + '\n{"step": 5021, "tok')  # it is being written
    text = training_page([Segment("400M", "train", tmp_path / "gone", done), Segment("400M", "decay", work)])
    assert text is not None
    drawn = ET.fromstring(picture_of(text))
    assert drawn.tag.endswith("svg")
    titles = [one.text or "" for one in drawn.iter() if one.tag.endswith("title")]
    assert any(title.startswith("trunk: loss 3.") for title in titles)
    assert any(title.startswith("branch to 400M: loss 3.") for title in titles)
    assert "| train 400M | 5,000 | 500K | 3.500 | 0.001 | 1,234 | 1.50 | 1 |" in text
    assert "| decay 400M | 5,020 | 502K | 3.498 | 0.001 | 1,234 | 1.50 | 1 |" in text
    assert len(text) < 200_000


def test_what_is_held_out_is_drawn_and_stands_in_the_table(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(1, 20)))
    measurements = [
        {
            "step": step,
            "tokens": 100 * step,
            "heldout/web": 3.5 - step / 100,
            "heldout/<b>": None,
            "seconds": 1.0,
        }
        for step in (0, 10, 20)
    ]
    (work / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measurements))
    text = training_page([Segment("400M", "train", work)])
    assert text is not None
    titles = [one.text or "" for one in ET.fromstring(picture_of(text)).iter() if one.tag.endswith("title")]
    assert titles.count("held out, web: 3.400 at 10") == 1 and "held out, web: 3.300 at 2K" in titles
    assert "held-out text" in text
    assert "| segment | step | tokens seen | loss | held out: web | held out: <b> | rate |" in text
    assert "| train 400M | 20 | 2K | 3.998 | 3.300 |  | 0.001 |" in text


def test_nothing_is_drawn_before_two_steps(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps(rows(1, 1)[0]) + "\n")
    assert training_page([Segment("1B", "train", tmp_path)]) is None
    assert training_page([Segment("1B", "train", tmp_path / "not begun")]) is None
    (tmp_path / "journal.jsonl").write_text("\n".join(json.dumps(row) for row in rows(1, 2)) + "\n")
    assert training_page([Segment("1B", "train", tmp_path)]) is not None


def test_pages_take_their_pictures_along(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.svg").write_text("<svg/>")
    (tmp_path / "figures" / "b.png").write_bytes(b"png")
    (tmp_path / "runs" / "report-3f").mkdir(parents=True)
    (tmp_path / "report" / "3f" / "figures").mkdir(parents=True)
    (tmp_path / "report" / "3f" / "figures" / "c.svg").write_text("<svg/>")
    costed = with_pictures("![Cost](../../report/3f/figures/c.svg)", tmp_path / "runs" / "report-3f")
    assert costed == f"![Cost](data:image/svg+xml;base64,{base64.b64encode(b'<svg/>').decode()})"
    text = "![One.](figures/a.svg)\n![Two](figures/b.png)\n![Gone](figures/c.svg)\n![Out](figures/../../x.svg)\n[l](x.md)"
    assert with_pictures(text, tmp_path).splitlines() == [
        f"![One.](data:image/svg+xml;base64,{base64.b64encode(b'<svg/>').decode()})",
        f"![Two](data:image/png;base64,{base64.b64encode(b'png').decode()})",
        "",
        "![Out](figures/../../x.svg)",
        "[l](x.md)",
    ]


def test_two_that_draw_at_once_do_not_change_each_others_bytes(tmp_path: Path) -> None:
    """The live page is drawn by a thread, while the report's figures may be drawn by another."""
    steps = list(range(60))
    curve = Curve(
        name="1B", kind="trunk", series="", tokens=steps, loss=[3.0 - n / 60 for n in steps], step=steps
    )
    alone = as_svg(lambda tips: loss_figure([curve], tips), "loss")
    (tmp_path / "a").mkdir()
    threads = [
        threading.Thread(target=as_svg, args=(lambda tips: loss_figure([curve], tips), name))
        for name in ("other", "another")
    ]
    for thread in threads:
        thread.start()
    save(lambda tips: loss_figure([curve], tips), tmp_path / "a", "loss")
    for thread in threads:
        thread.join()
    assert (tmp_path / "a" / "loss.svg").read_text() == alone
