"""What a file is, told by its first bytes and not by its name, and the way out where it is nothing that is read.

Read are Parquet, JSON lines (or one JSON array) and text, the last two also as gzip or zstd. A table of first bytes is
enough to name the rest: no library was found that also tells CSV, pretty-printed JSON or a Git LFS pointer apart.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import orjson

from storage.errors import ConfigError
from tasks.corpus.reading.patterns import matches
from tasks.corpus.reading.remote import RemoteFile
from tasks.corpus.reading.streams import Stream
from tasks.corpus.reading.strict_json import strict_loads

HEAD_BYTES = 1 << 14
COMPRESSED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")
PROSE_SUFFIXES = (".txt", ".text", ".md", ".rst")
TEXT_SUFFIXES = (
    *PROSE_SUFFIXES,
    *(".markdown", ".org", ".adoc", ".tex"),
    *(
        ".py",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".cs",
        ".java",
        ".kt",
        ".scala",
        ".go",
        ".rs",
        ".swift",
        ".js",
        ".ts",
    ),
    *(".rb", ".php", ".lua", ".pl", ".r", ".jl", ".hs", ".sh", ".sql", ".css"),
)
"""Each such file is one document. In a dataset of the hub only prose is: there, code is what loads it."""
PARQUET_SUFFIXES = (".parquet", ".pq")
LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")

_TO_TEXT = "make it text first, with onward inspect FOLDER --to FILE"
_TO_ANOTHER = "convert it to PDF or text first"
_UNPACK = "unpack it, and name the files in it"
_PACK_AGAIN = "unpack it, or compress it with gzip or zstd"
_TO_PARQUET = "write it as Parquet or JSON lines"
_TO_LINES = "write it as JSON lines, one object with the text a line"
_NO_TEXT = "leave it out"
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer and not the data", "fetch the data with git lfs pull"),
    (0, b"/annex/objects/", "a git-annex pointer and not the data", "fetch the data with git annex get"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document (doc, xls, ppt or msg)", _TO_TEXT),
    (0, b"{\\rtf", "an RTF document", _TO_TEXT),
    (0, b"%!PS", "a PostScript document", _TO_ANOTHER),
    (0, b"AT&TFORM", "a DjVu document", _TO_ANOTHER),
    (60, b"BOOKMOBI", "a Mobipocket e-book", _TO_ANOTHER),
    (0, b"WARC/", "a web archive (WARC)", _TO_TEXT),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"MSCF", "a cabinet archive", _UNPACK),
    (0, b"!<arch>\n", "an ar archive", _UNPACK),
    (0, b"BZh", "compressed with bzip2", _PACK_AGAIN),
    (0, b"\xfd7zXZ\0", "compressed with xz", _PACK_AGAIN),
    (0, b"]\0\0", "compressed with LZMA", _PACK_AGAIN),
    (0, b"\x04\x22\x4d\x18", "compressed with LZ4", _PACK_AGAIN),
    (0, b"\xff\x06\0\0sNaPpY", "compressed with Snappy", _PACK_AGAIN),
    (0, b"\x1f\x9d", "compressed with compress", _PACK_AGAIN),
    (0, b"LZIP", "compressed with lzip", _PACK_AGAIN),
    (0, b"\x1f\x8b", "compressed twice", "unpack it once"),
    (0, b"\x28\xb5\x2f\xfd", "compressed twice", "unpack it once"),
    (0, b"SQLite format 3\0", "an SQLite database", _TO_PARQUET),
    (8, b"DUCK", "a DuckDB database", _TO_PARQUET),
    (0, b"ARROW1", "an Arrow (Feather) file", _TO_PARQUET),
    (0, b"FEA1", "a Feather file", _TO_PARQUET),
    (0, b"\xff\xff\xff\xff", "an Arrow stream", _TO_PARQUET),
    (0, b"Obj\x01", "an Avro file", _TO_PARQUET),
    (0, b"ORC", "an ORC file", _TO_PARQUET),
    (0, b"PARE", "an encrypted Parquet file", "decrypt it"),
    (0, b"\x89HDF\r\n", "an HDF5 file", _TO_PARQUET),
    (0, b"\x93NUMPY", "a NumPy array", _TO_PARQUET),
    (0, b"GGUF", "a model (GGUF)", _NO_TEXT),
    (8, b'{"', "a model (safetensors)", _NO_TEXT),
    (0, b"\x89PNG\r\n", "an image (PNG)", _NO_TEXT),
    (0, b"\xff\xd8\xff", "an image (JPEG)", _NO_TEXT),
    (0, b"GIF87a", "an image (GIF)", _NO_TEXT),
    (0, b"GIF89a", "an image (GIF)", _NO_TEXT),
    (8, b"WEBP", "an image (WebP)", _NO_TEXT),
    (0, b"II*\0", "an image (TIFF)", _NO_TEXT),
    (0, b"MM\0*", "an image (TIFF)", _NO_TEXT),
    (4, b"ftyp", "a film or an image (MP4, HEIC)", _NO_TEXT),
    (8, b"WAVE", "a recording (WAV)", _NO_TEXT),
    (0, b"OggS", "a recording (Ogg)", _NO_TEXT),
    (0, b"fLaC", "a recording (FLAC)", _NO_TEXT),
    (0, b"ID3", "a recording (MP3)", _NO_TEXT),
    (0, b"\x1aE\xdf\xa3", "a film (Matroska)", _NO_TEXT),
    (0, b"\x7fELF", "a program", _NO_TEXT),
    (0, b"\xcf\xfa\xed\xfe", "a program", _NO_TEXT),
    (0, b"\xca\xfe\xba\xbe", "a program", _NO_TEXT),
    (0, b"\0asm", "a program", _NO_TEXT),
)
"""Place, bytes, what the file is, and what to do about it."""
_AS_IN_TEXT = (
    *(b"]\0\0", b"ORC", b"ID3", b"ftyp", b"DUCK", b"WAVE", b"WEBP", b'{"', b"BZh"),
    *(b"LZIP", b"FEA1", b"PARE", b"GGUF", b"MSCF", b"OggS", b"fLaC"),
)
"""Words that a text too may begin with: they count only where the bytes after them are no text."""
_ZIPPED = (
    (b"application/epub", "an EPUB book", _TO_TEXT),
    (b"opendocument", "an OpenDocument file", _TO_TEXT),
    (b"word/", "a Word document", _TO_TEXT),
    (b"xl/", "an Excel workbook", _TO_TEXT),
    (b"ppt/", "a PowerPoint document", _TO_TEXT),
    (b"[Content_Types].xml", "an Office document", _TO_TEXT),
    (b"/data.pkl", "a PyTorch checkpoint", _NO_TEXT),
    (b".npy", "NumPy arrays", _TO_PARQUET),
)
_BINARY = "a binary file"
_CONTROL = bytes([*range(8), 11, *range(14, 27), *range(28, 32), 127])
_HTML = re.compile(rb"(<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S)
_PICKLE = re.compile(rb"\x80[\x02-\x05](\x95|[}\](ciXJMK\x8a-\x8c])")
_MARKUP = re.compile(rb"<[?!a-zA-Z]")


def refusal(path: Path | RemoteFile) -> tuple[str, str] | None:
    """What the file is, and the way out, if it is nothing that is read; None if it is, or if it is empty or damaged."""
    with path.open("rb") as file:
        raw = file.read(HEAD_BYTES)
    suffix, *_ = [
        one.lower() for one in reversed(path.suffixes) if one.lower() not in COMPRESSED_SUFFIXES
    ] or [""]
    return told(raw, suffix, whole=len(raw) < HEAD_BYTES)


def told(raw: bytes, suffix: str, *, whole: bool) -> tuple[str, str] | None:
    """As `refusal`, for the first bytes of a file. `whole`: they are all of it."""
    stream = Stream(io.BytesIO(raw))
    head = raw
    if not stream.plain:
        head = next(iter(stream), b"")[:HEAD_BYTES]
        if stream.fault is not None and stream.fault[0] == "window_too_large":
            return "compressed with too large a window", stream.fault[1]
        whole = False
    if not head:
        return None
    if head.startswith(b"PAR1"):
        return None if stream.plain else ("a compressed Parquet file", "unpack it")
    found = _binary(head)
    if found is not None and (found[0] != _BINARY or not any(map(_is_object, head.split(b"\n")))):
        return found
    bare = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _HTML.match(bare):
        return "an HTML page", _TO_TEXT
    if suffix in PARQUET_SUFFIXES:
        return "not Parquet, though it has the name of one", "give it the name of what it is"
    return None if suffix in TEXT_SUFFIXES else _not_lines(bare, suffix, whole)


def _binary(head: bytes) -> tuple[str, str] | None:
    """What bytes are that are no text in UTF-8 or an older encoding."""
    control = len(head) - len(head.translate(None, _CONTROL))
    odd = control > len(head) // 100
    if b"%PDF-" in head[:1024]:
        return "a PDF document", _TO_TEXT
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        found = [(what, way) for sign, what, way in _ZIPPED if sign in head]
        return found[0] if found else ("a zip archive", _UNPACK)
    for place, magic, what, way in _MAGIC:
        if head.startswith(magic, place) and (odd or magic not in _AS_IN_TEXT):
            return what, way
    if _PICKLE.match(head):
        return "a pickle (or a PyTorch checkpoint)", "write its texts as JSON lines; pickles are never read"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_wide(head):
        return "text in UTF-16 or UTF-32", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
    return (_BINARY, _NO_TEXT) if control > len(head) // 20 else None


def _is_wide(head: bytes) -> bool:
    """Whether every other byte is null, as in UTF-16 without a byte order mark."""
    some = head[:4096]
    even, odd = some[::2].count(0), some[1::2].count(0)
    return (
        len(some) >= 16
        and max(even, odd) > 0.9 * (len(some) // 2)
        and min(even, odd) < 0.5 * (len(some) // 2)
    )


def _not_lines(bare: bytes, suffix: str, whole: bool) -> tuple[str, str] | None:
    """What a text is, if none of its first lines is an object of JSON. A line that is longer than the head is trusted."""
    lines = bare.split(b"\n")
    complete = lines if whole else lines[:-1]
    if any(_is_object(line) for line in complete) or (not complete and bare.startswith(b"{")):
        return None
    if bare.startswith(b"["):
        return None
    if bare.startswith(b"{"):
        return _pretty(bare, lines)
    if not bare or (suffix in LINES_SUFFIXES and any(line.lstrip().startswith(b"{") for line in lines)):
        return None  # bad lines, each of which ingest sets aside
    if _MARKUP.match(bare):
        return "XML or another markup", _TO_TEXT
    if suffix in (".tsv", ".tab") or (suffix not in LINES_SUFFIXES and _is_table(lines, b"\t")):
        return "a table (TSV)", _TO_LINES
    if suffix == ".csv" or any(_is_table(lines, sign) for sign in (b",", b";", b"\t", b"|")):
        return "a table (CSV)" if not _is_table(lines, b"\t") else "a table (TSV)", _TO_LINES
    if suffix in (".yaml", ".yml") or bare.startswith((b"---\n", b"%YAML")):
        return "YAML", _TO_LINES
    if suffix in LINES_SUFFIXES:
        return "not JSON", _TO_LINES
    return "text under a name that is not one of a text", "if each file is one document, call it .txt"


def _pretty(bare: bytes, lines: list[bytes]) -> tuple[str, str] | None:
    first = lines[0].strip()
    if first.endswith(b"}") or len(lines) == 1:
        return None  # a bad line, which ingest sets aside
    if b'"nbformat"' in bare or b'"cell_type"' in bare:
        return "a Jupyter notebook", _TO_TEXT
    return "JSON printed over several lines", "write each object on a line of its own (jq -c .)"


def _is_object(line: bytes) -> bool:
    line = line.strip()
    if not line.startswith(b"{"):
        return False
    try:
        return type(orjson.loads(line)) is dict
    except orjson.JSONDecodeError:
        try:
            return type(strict_loads(line)) is dict
        except (ValueError, RecursionError):
            return False


def _is_table(lines: list[bytes], sign: bytes) -> bool:
    """Whether the first lines have the same number of separators."""
    counts = {line.count(sign) for line in lines[:5] if line.strip()}
    return len(lines) > 2 and len(counts) == 1 and counts != {0}


# ── All files of a source ────────────────────────────────────────────────────────────────────────────────────────────


def check_kinds(source: str, patterns: tuple[str, ...], base: Path) -> None:
    """Raise ConfigError, in one sentence, if some of the files that the patterns match are nothing that is read.

    Reads the first 16 KiB of each file. Pipes and devices are not opened. Directories beside the files are passed over,
    unless they have the name of a file.
    """
    strange: dict[Path, tuple[str, str]] = {}
    files = filled = 0
    for path in _matched(patterns, base):
        what = _no_file(path)
        if what is None and path.is_dir():
            continue
        files += 1
        try:
            what = what or refusal(path)
            filled += what is not None or path.stat().st_size > 0
        except OSError as error:
            what = f"not readable ({error.strerror or error})", "let this user read it"
        if what is not None:
            strange[path] = what
    if strange:
        raise unreadable(source, strange, files, base)
    if files and not filled:
        empty = "the file is" if files == 1 else f"all {files:,} files are"
        raise ConfigError(
            f"corpus.sources: {source}: {empty} empty; put the text there, or leave the source out"
        )


def unreadable(source: str, strange: Mapping[Path, tuple[str, str]], files: int, base: Path) -> ConfigError:
    """The error for files that are nothing that is read: what each is, and the way out. `files`: of so many."""
    return ConfigError(f"corpus.sources: {source}: {_sentence(strange, files, base)}")


def _matched(patterns: tuple[str, ...], base: Path) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys(matches(pattern, base).found)
    return list(found)


def _no_file(path: Path) -> tuple[str, str] | None:
    """What stands there if it is neither a file nor a directory that is passed over."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to a file that is not there", "put the file there, or remove the link"
    except OSError as error:
        return f"not readable ({error.strerror or error})", "let this user read it"
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        known = (*PARQUET_SUFFIXES, *LINES_SUFFIXES, *TEXT_SUFFIXES, *COMPRESSED_SUFFIXES)
        if path.suffix.lower() in known:
            return "a directory with the name of a file", f"name its files ({path.name}/*)"
        return None
    kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    what = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
    return what, "write what it gives to a file"


def _sentence(strange: Mapping[Path, tuple[str, str]], files: int, base: Path) -> str:
    """`3 of 10 files cannot be read: a.pdf is a PDF document (make it text first, …); b.zip and 1 more are …`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, found in strange.items():
        groups.setdefault(found, []).append(_name(path, base))
    said = []
    for (what, way), names in sorted(groups.items(), key=lambda group: -len(group[1])):
        if len(names) == 1:
            said.append(f"{names[0]} is {what}: {way}")
        else:
            more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
            said.append(f"{names[0]}, {names[1]}{more} are each {what}: {way}")
    of = f"{len(strange):,} of {files:,} files cannot be read: " if files > 1 else ""
    return of + "; ".join(said)


def _name(path: Path, base: Path) -> str:
    try:
        name = str(path if base == Path(base.anchor) else path.relative_to(base))
    except ValueError:
        name = str(path)
    return name.encode(errors="backslashreplace").decode()
