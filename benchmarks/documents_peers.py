"""Other libraries on the files of documents.py, which calls this in the environment of the peers.

    python benchmarks/documents_peers.py write TEXTS.jsonl DIRECTORY
    python benchmarks/documents_peers.py read READER OUT.json FILE...

`write` makes DOCX files (python-docx) in one and in two columns, with a head, a page number and hyphenation. `read` writes
the texts of the files, and the CPU seconds that they took: the median of three rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


def write(texts: Path, directory: Path) -> None:
    """One DOCX of each layout for each document."""
    import docx
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    for line in texts.read_text(encoding="utf-8").splitlines():
        name, blocks = json.loads(line)
        for columns in (1, 2):
            document = docx.Document()
            section = document.sections[0]
            section.header.paragraphs[0].text = f"A running head of the book {name}"
            run = section.footer.paragraphs[0].add_run()
            for kind, text in (("begin", ""), ("", "PAGE"), ("end", "")):
                element = OxmlElement("w:fldChar" if kind else "w:instrText")
                if kind:
                    element.set(qn("w:fldCharType"), kind)
                element.text = text or None
                run._r.append(element)
            found = section._sectPr.find(qn("w:cols"))
            layout = found if found is not None else section._sectPr.makeelement(qn("w:cols"))
            if found is None:
                section._sectPr.append(layout)
            layout.set(qn("w:num"), str(columns))
            hyphens = OxmlElement("w:autoHyphenation")
            hyphens.set(qn("w:val"), "true")
            document.settings.element.insert(0, hyphens)
            for kind, text in blocks:
                if kind == "heading":
                    document.add_heading(text, 2)
                elif kind == "item":
                    document.add_paragraph(text, style="List Bullet")
                else:
                    document.add_paragraph(text).alignment = 3
            document.save(str(directory / f"{name}-{columns}.docx"))


def resiliparse(data: bytes) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse_from_bytes(data, "utf-8")
    return str(extract_plain_text(tree, main_content=True, preserve_formatting=True, alt_texts=False))


def trafilatura(data: bytes) -> str:
    import trafilatura

    return trafilatura.extract(data.decode(), include_tables=True, include_comments=False) or ""


def kreuzberg(data: bytes) -> str:
    import kreuzberg

    kind = "application/pdf" if data.startswith(b"%PDF") else kreuzberg.detect_mime_type(data)
    return str(
        kreuzberg.extract_bytes_sync(data, kind, config=kreuzberg.ExtractionConfig(use_cache=False)).content
    )


def mammoth(data: bytes) -> str:
    import io

    import mammoth

    return str(mammoth.extract_raw_text(io.BytesIO(data)).value)


def pypdfium2(data: bytes) -> str:
    import pypdfium2

    document = pypdfium2.PdfDocument(data)
    return "\n".join(page.get_textpage().get_text_range() for page in document)


READERS: dict[str, Callable[[bytes], str]] = {
    one.__name__: one for one in (resiliparse, trafilatura, kreuzberg, mammoth, pypdfium2)
}


def read(reader: Callable[[bytes], str], out: Path, files: list[str]) -> None:
    """Texts of files and the seconds of all of them."""
    contents = [Path(file).read_bytes() for file in files]
    reader(contents[0])
    rounds, texts = [], []
    for _ in range(3):
        begun = time.process_time()
        texts = [reader(content) for content in contents]
        rounds.append(time.process_time() - begun)
    out.write_text(json.dumps({"texts": texts, "seconds": statistics.median(rounds)}), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        read(READERS[sys.argv[2]], Path(sys.argv[3]), sys.argv[4:])
