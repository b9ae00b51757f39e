"""How much of a text comes back out of HTML, PDF, EPUB and office files, how clean, in which order, and how fast.

    python benchmarks/documents.py TEXTS.parquet [--documents 40] [--peers PYTHON] [--directory DIR]

Real texts (column `text`, Markdown) are written out as files: HTML in four layouts with menus, side bars and feet; EPUB; with
`--peers`, an environment with python-docx, resiliparse, trafilatura, kreuzberg, mammoth and pypdfium2, DOCX; and by
LibreOffice (Debian's libreoffice-writer-nogui and hyphen-en-us) from these ODT, RTF, and PDF in one and in two columns,
hyphenated, with a running head and page numbers. Then they are read back. With `--directory`, the office files stay, and are
taken the next time.

Recall: share of the text's words that come back, as often as they are there. Precision: share of the words that come back
which are in the text. Order: share of neighbouring paragraphs (of eight words and more) that come back one behind the other.
Seconds are CPU seconds of one process, the median of three rounds, the file's bytes already in memory. Prints a Markdown
table and a line of JSON.
"""

# ruff: noqa: E501 (sources of documents)

from __future__ import annotations

import argparse
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet as pq

from benchmarks.documents_peers import read as timed
from tasks.documents.document import Document
from tasks.documents.read import read

Block = tuple[str, str]
PEERS = {
    "html": ("resiliparse", "trafilatura", "kreuzberg"),
    "pdf, one column": ("pypdfium2", "kreuzberg"),
    "pdf, two columns": ("pypdfium2", "kreuzberg"),
    "docx": ("mammoth", "kreuzberg"),
    "epub": ("kreuzberg",),
    "odt": ("kreuzberg",),
    "rtf": ("kreuzberg",),
}
ORDER_WORDS = 8


@dataclass
class Result:
    """One reader on the files of one kind. Speeds are per second of one core."""

    kind: str
    reader: str
    recall: float
    precision: float
    order: float
    megabytes: float
    pages: float | None


def blocks_of(text: str) -> list[Block]:
    """Headings, items and paragraphs of a text in simple Markdown."""
    blocks: list[Block] = []
    for part in re.split(r"\n\s*\n", text):
        for line in part.strip().split("\n"):
            if found := re.match(r"#+ (.+)", line):
                blocks.append(("heading", found[1]))
            elif found := re.match(r"\s*(?:[-*]|\d+\.) (.+)", line):
                blocks.append(("item", found[1]))
            elif line.strip():
                blocks.append(("paragraph", " ".join(line.split())))
    return blocks


def body_of(blocks: list[Block]) -> str:
    """Blocks as HTML."""
    parts: list[str] = []
    for at, (kind, text) in enumerate(blocks):
        said = html.escape(text)
        if kind == "item":
            opens = at == 0 or blocks[at - 1][0] != "item"
            closes = at + 1 == len(blocks) or blocks[at + 1][0] != "item"
            parts.append(f"{'<ul>' if opens else ''}<li>{said}</li>{'</ul>' if closes else ''}")
        else:
            parts.append(f"<h2>{said}</h2>" if kind == "heading" else f"<p>{said}</p>")
    return "\n".join(parts)


def page_of(blocks: list[Block], layout: int) -> str:
    """A page of one of four layouts, each with a hundred links that are not its text."""
    links = [f"<li><a href='/section/{n}'>Menu entry {n} of site</a></li>" for n in range(40)]
    menu, side, foot = "".join(links[:15]), "".join(links[15:25]), "".join(links[25:])
    body = body_of(blocks)
    around = [
        (
            f"<header><a href=/>Brand</a><nav><ul>{menu}</ul></nav></header><main>",
            f"</main><aside><ul>{side}</ul></aside><footer>{foot} © Brand</footer>",
        ),
        (
            f"<div class='navbar top'><ul>{menu}</ul></div><div class='wrap'><div id='sidebar'>{side}</div><div class='content'>",
            f"</div></div><div class='site-footer footer'>{foot}<p>All rights reserved by Brand</p></div>",
        ),
        (
            f"<div><div><ul>{menu}</ul></div><table><tr><td><ul>{side}</ul></td><td>",
            f"</td></tr></table><div><ul>{foot}</ul></div></div>",
        ),
        (
            f"<div role=navigation>{menu}</div><div class='cookie-banner'>This site uses cookies <button>Accept</button></div><article>",
            f"<div class='share-buttons'>Share on Brand</div></article><section class='related-posts'><h3>Related</h3>{side}</section><div id='comments'>12 comments {foot}</div>",
        ),
    ][layout]
    head = "<title>Page - Brand</title><style>.a{color:red}</style><script>var tracking = 'words that are no text';</script>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{around[0]}\n{body}\n{around[1]}</body></html>"


def book_of(blocks: list[Block]) -> bytes:
    """A book with a chapter for each ten blocks."""
    out = io.BytesIO()
    chapters = [blocks[at : at + 10] for at in range(0, len(blocks), 10)]
    items = "".join(
        f'<item id="c{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="i"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:identifier id="i">x</dc:identifier><dc:title>Book</dc:title><dc:language>en</dc:language></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>'
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
        '<rootfile full-path="b.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("b.opf", package)
        for number, chapter in enumerate(chapters):
            page = f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>c</title></head><body>{body_of(chapter)}</body></html>'
            archive.writestr(f"{number}.xhtml", page)
    return out.getvalue()


def written(documents: dict[str, list[Block]], directory: Path, peers: str | None) -> dict[str, list[Path]]:
    """The files of each kind, in the order of the documents. Those that are there from before are taken."""
    files: dict[str, list[Path]] = {"html": [], "epub": []}
    for at, (name, blocks) in enumerate(documents.items()):
        (directory / f"{name}.html").write_text(page_of(blocks, at % 4), encoding="utf-8")
        (directory / f"{name}.epub").write_bytes(book_of(blocks))
        files["html"].append(directory / f"{name}.html")
        files["epub"].append(directory / f"{name}.epub")
    if peers is None:
        return files
    files["docx"] = [directory / f"{name}-1.docx" for name in documents]
    office = {
        **{kind: [directory / f"{name}-1.{kind}" for name in documents] for kind in ("odt", "rtf")},
        "pdf, one column": [directory / f"{name}-1.pdf" for name in documents],
        "pdf, two columns": [directory / f"{name}-2.pdf" for name in documents],
    }
    if all(file.exists() for some in office.values() for file in some):
        return files | office
    texts = directory / "texts.jsonl"
    texts.write_text("".join(json.dumps(item) + "\n" for item in documents.items()), encoding="utf-8")
    subprocess.run([peers, "benchmarks/documents_peers.py", "write", str(texts), str(directory)], check=True)
    if shutil.which("soffice"):
        home = f"-env:UserInstallation=file://{directory}/office"
        for kind, columns in (("pdf", "12"), ("odt", "1"), ("rtf", "1")):
            sources = [str(directory / f"{name}-{number}.docx") for number in columns for name in documents]
            subprocess.run(
                ["soffice", home, "--headless", "--convert-to", kind, "--outdir", str(directory), *sources],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        files |= office
    return files


def ours(data: bytes) -> str:
    return "\n\n".join(one.text for one in read(io.BytesIO(data), "f") if isinstance(one, Document))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def order(blocks: list[Block], found: list[str]) -> tuple[int, int]:
    """Neighbouring paragraphs that come one behind the other, and how many there are that do so in the text itself."""
    begins = [tuple(said[:ORDER_WORDS]) for _, text in blocks if len(said := words(text)) >= ORDER_WORDS]
    begins = [one for one, count in Counter(begins).items() if count == 1]
    original, read_back = places_of(words(" ".join(said for _, said in blocks))), places_of(found)
    pairs = [(a, b) for a, b in pairwise(begins) if original[a] < original[b]]
    return sum(read_back.get(a, 1 << 60) < read_back.get(b, -1) for a, b in pairs), len(pairs)


def places_of(found: list[str]) -> dict[tuple[str, ...], int]:
    """Where each run of words is first."""
    places: dict[tuple[str, ...], int] = {}
    for at in range(len(found) - ORDER_WORDS + 1):
        places.setdefault(tuple(found[at : at + ORDER_WORDS]), at)
    return places


def judged(
    kind: str,
    reader: str,
    documents: dict[str, list[Block]],
    texts: list[str],
    seconds: float,
    files: list[Path],
) -> Result:
    kept = wanted = came = right = pairs = 0
    for blocks, text in zip(documents.values(), texts, strict=True):
        reference, found = Counter(words(" ".join(said for _, said in blocks))), words(text)
        kept += sum((reference & Counter(found)).values())
        wanted += reference.total()
        came += len(found)
        good, all_ = order(blocks, found)
        right, pairs = right + good, pairs + all_
    size = sum(file.stat().st_size for file in files)
    pages = (
        sum(len(re.findall(rb"/Type\s*/Page\b", file.read_bytes())) for file in files) / seconds
        if kind.startswith("pdf")
        else None
    )
    return Result(
        kind, reader, kept / wanted, kept / max(came, 1), right / max(pairs, 1), size / 1e6 / seconds, pages
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--peers")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    texts = pq.read_table(options.texts, columns=["text"]).column("text").to_pylist()
    long = [text for text in texts if 4_000 < len(text) < 60_000]
    chosen = long[:: max(1, len(long) // options.documents)][: options.documents]
    documents = {f"d{number:03}": blocks_of(text) for number, text in enumerate(chosen)}
    with tempfile.TemporaryDirectory() as made:
        directory = (options.directory or Path(made)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        results: list[Result] = []
        for kind, files in written(documents, directory, options.peers).items():
            out = directory / "out.json"
            names = [str(file) for file in files]
            for reader in ("onward", *(PEERS[kind] if options.peers else ())):
                if reader == "onward":
                    timed(ours, out, names)
                else:
                    subprocess.run(
                        [options.peers, "benchmarks/documents_peers.py", "read", reader, str(out), *names],
                        check=True,
                        stdout=subprocess.DEVNULL,
                    )
                found = json.loads(out.read_text(encoding="utf-8"))
                results.append(judged(kind, reader, documents, found["texts"], found["seconds"], files))
    print(
        "| kind | read with | word recall | word precision | order | MB/s | pages/s |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for one in results:
        name = f"**{one.reader}**" if one.reader == "onward" else one.reader
        pages = f"{one.pages:,.0f}" if one.pages is not None else ""
        print(
            f"| {one.kind} | {name} | {one.recall:.4f} | {one.precision:.4f} | {one.order:.4f} | {one.megabytes:,.1f} | {pages} |"
        )
    print(json.dumps([asdict(one) for one in results]))


if __name__ == "__main__":
    main()
