"""Which encoding a text has: as its first bytes or its head say, UTF-8 if it is, else as chardet tells by its letters."""

from __future__ import annotations

import codecs
import re

import chardet

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 1 << 15
_USUAL = {
    "cp932": ((0x82, 0x83), (0x88, 0x97)),
    "euc_jp": ((0xA4, 0xA5), (0xB0, 0xCF)),
    "gb2312": ((0xB0, 0xD7),),
    "big5": ((0xA4, 0xC6),),
    "euc_kr": ((0xB0, 0xC8),),
}
"""First bytes of the usual letters of each standard."""
_DECLARED = re.compile(
    rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]+)|<meta[^>]{0,300}?charset\s*=\s*["']?\s*([\w.:-]+)""",
    re.I,
)
_AS_BROWSERS = {
    "iso-8859-1": "cp1252",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
"""Encodings that are read as the larger one that contains them, as browsers do (WHATWG Encoding)."""


def decoded(data: bytes) -> tuple[str, str]:
    """The text, without a mark at its beginning, and the name of its encoding. Bytes that are none become U+FFFD."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace"), name.removesuffix("-le").removesuffix("-be")
    wide = wide_encoding(data)
    if wide is not None:
        return data.decode(wide, "replace"), wide
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        if error.start > len(data) - 4 and error.end == len(data):  # cut in the middle of a letter
            return data[: error.start].decode("utf-8"), "utf-8"
    for said in (_declared(data), _told(data)):
        try:
            if said:
                return data.decode(said), said
        except (UnicodeDecodeError, LookupError):
            continue
    if _mostly_utf8(data):
        return data.decode("utf-8", "replace"), "utf-8"
    return data.decode("cp1252", "replace"), "cp1252"


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: told by where the null bytes are."""
    some = data[:4096]
    some = some[: len(some) // 4 * 4]
    if len(some) < 8:
        return None
    zeros = [some[place::4].count(0) / (len(some) // 4) for place in range(4)]
    if zeros[0] < 0.1 and min(zeros[1:]) > 0.9:
        return "utf-32-le"
    if zeros[3] < 0.1 and min(zeros[:3]) > 0.9:
        return "utf-32-be"
    even, odd = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    if odd > 0.6 and even < 0.1:
        return "utf-16-le"
    if even > 0.6 and odd < 0.1:
        return "utf-16-be"
    return None


def _declared(data: bytes) -> str | None:
    found = _DECLARED.search(data[:2048])
    if found is None:
        return None
    try:
        name = codecs.lookup((found[1] or found[2]).decode("ascii")).name
    except (LookupError, UnicodeDecodeError):
        return None
    return None if name.startswith(("utf-16", "utf-32")) else _AS_BROWSERS.get(name, name)


def _told(data: bytes) -> str | None:
    """By the letters of a sample that begins where they are no longer plain ASCII."""
    beyond = re.search(rb"[\x80-\xff]", data)
    first = beyond.start() if beyond else 0
    sample = data[max(0, first - 1024) : first + _SAMPLE]
    name = chardet.detect(sample)["encoding"]
    if not name:
        return _of_two_bytes(sample)
    try:
        known = codecs.lookup(name).name
    except LookupError:
        return None
    if known == "cp1250" and not any(
        0x80 <= byte < 0xA0 for byte in sample
    ):  # where cp1250 has letters of these languages
        return "iso8859-2"
    if known.startswith(("cp125", "iso8859", "mac", "latin")) and known not in (
        "cp1251",
        "iso8859-5",
        "mac-cyrillic",
        "cp1253",
        "iso8859-7",
    ):
        return _of_two_bytes(sample) or known
    return _AS_BROWSERS.get(known, known)


def _of_two_bytes(sample: bytes) -> str | None:
    """An encoding of Chinese, Japanese or Korean, where a short sample is hardly anything but such letters.

    What counts is how many of its letters are among the usual ones, which each standard has in rows of their own.
    """
    if sum(byte > 127 for byte in sample) * 3 < len(sample.translate(None, b" \t\r\n,;|")):
        return None
    best, most = None, 0.8
    for name, rows in _USUAL.items():
        try:
            letters = [letter for letter in sample.decode(name) if ord(letter) > 127]
        except UnicodeDecodeError:
            continue
        usual = sum(any(low <= letter.encode(name)[0] <= high for low, high in rows) for letter in letters)
        if letters and usual > most * len(letters):
            best, most = name, usual / len(letters)
    return best


def _mostly_utf8(data: bytes) -> bool:
    """Whether it is UTF-8 with some damage: few of its letters beyond ASCII are wrong."""
    wrong = data.decode("utf-8", "replace").count("�")
    return wrong * 20 < sum(byte > 127 for byte in data[: 1 << 20]) + 1
