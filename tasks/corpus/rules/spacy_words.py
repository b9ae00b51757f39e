"""Split one piece between spaces into words exactly as spaCy's English tokenizer does.

See spaCy's `tokenizer.pyx` and `lang/punctuation.py` (version 3.8, MIT). Signs are removed from both ends one at a
time, until the rest is an exception; an address stays whole; the rest is split at hyphens, ellipses and similar signs.

This is plain Python, for the pieces that a regular expression cannot split. `english` calls it once per distinct
piece.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from tasks.corpus.rules.contractions import exceptions

_REMEMBERED = 1 << 18
"""Number of distinct pieces in the cache: about 60 MB."""


def _class(*categories: str, without: str = "") -> str:
    """The inside of a character class: ranges of the characters up to U+FFFF in these Unicode categories."""
    ranges: list[list[int]] = []
    for code, category in enumerate(_CATEGORIES):
        if category in categories and chr(code) not in without:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\u{low:04x}-\\u{high:04x}" for low, high in ranges)


_CATEGORIES = [unicodedata.category(chr(code)) for code in range(0x10000)]
_LOWER, _UPPER = _class("Ll", "Lo", without="ªº"), _class("Lu", "Lo", without="ªº")
_ALPHA = _LOWER + _class("Lu")
_ICONS = _class("So") + "\U0001f000-\U0001faff"
_PUNCT = r"…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧\u2329\u232a"
_CURRENCY = "$£€¥฿₽﷼₠-₿"
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph"
    " hPa Pa mbar mb MB kb KB gb GB tb TB T G M K %"
)

_PREFIX = re.compile(rf"[§%=—–{_PUNCT}{_QUOTES}{_CURRENCY}{_ICONS}]|\+(?![0-9])|\.\.+|US\$|C\$|A\$").match
_SUFFIX = re.compile(
    rf"(?:……|\.\.+|['’][sS]|[—–{_PUNCT}{_QUOTES}{_ICONS}]"
    rf"|(?<=[0-9])(?:\+|[{_CURRENCY}]|US\$|C\$|A\$|{_UNITS.replace(' ', '|')})|(?<=°[FfCcKk])\."
    rf"|(?<=[0-9{_LOWER}%²\-+|{_PUNCT}{_QUOTES}])\.|(?<=[{_UPPER}][{_UPPER}])\.)$"
).search
_INFIX = re.compile(
    rf"\.\.+|…|[{_ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])"
    rf"|(?<=[{_ALPHA}]),(?=[{_ALPHA}])|(?<=[{_ALPHA}0-9])(?:-|–|—|--|---|——|~)(?=[{_ALPHA}])"
    rf"|(?<=[{_ALPHA}0-9])[:<>=/](?=[{_ALPHA}])"
).finditer
_ADDRESS = re.compile(
    r"(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?(?:"
    r"(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
    r"(?!172\.(?:1[6-9]|2\d|3[0-1])(?:\.\d{1,3}){2})"
    r"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}(?:\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4]))"
    r"|(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{0,62})?[A-Za-z0-9\u00a1-\uffff]\.)+"
    rf"(?:[{_LOWER}]{{2,63}}))(?::\d{{2,5}})?(?:[/?#]\S*)?$"
).match


@lru_cache(_REMEMBERED)
def cut(piece: str) -> tuple[str, ...]:
    """The words of a piece without white space."""
    return tuple(_joined(_split(piece, _EXCEPTIONS)))


def _split(piece: str, special: dict[str, tuple[str, ...]]) -> list[str]:
    before, after, last = [], [], 0
    while piece and len(piece) != last and piece not in special:
        last = len(piece)
        found = _PREFIX(piece)
        front = found.end() if found else 0
        if front and piece[front:] in special:
            before.append(piece[:front])
            piece = piece[front:]
            break
        found = _SUFFIX(piece[front:])
        back = found.end() - found.start() if found else 0
        if back and piece[:-back] in special:
            after.append(piece[-back:])
            piece = piece[:-back]
            break
        if front and (not back or front + back <= len(piece)):
            before.append(piece[:front])
        if back and (not front or front + back <= len(piece)):
            after.append(piece[-back:])
        if front and back and front + back <= len(piece):
            piece = piece[front:-back]
        elif front or back:
            piece = piece[front:] if front else piece[:-back]
    if piece in special:
        before += special[piece]
    elif piece:
        before += [piece] if _ADDRESS(piece) else _inner(piece)
    return before + after[::-1]


def _inner(piece: str) -> list[str]:
    """Split at the infixes, except one at the very beginning."""
    words, start = [], 0
    for match in _INFIX(piece):
        if match.start() == 0:
            continue
        if match.start() != start:
            words.append(piece[start : match.start()])
        words.append(match.group())
        start = match.end()
    return [*words, piece[start:]] if piece[start:] else words


def _joined(words: list[str]) -> list[str]:
    """Join words that form an exception of several signs, such as `):`, the longest first."""
    if _OPENERS.isdisjoint(words):
        return words
    found = [
        (length, -start)
        for start, word in enumerate(words)
        if word in _OPENERS
        for length in range(1, min(_LONGEST, len(words) - start) + 1)
        if tuple(words[start : start + length]) in _SEQUENCES
    ]
    taken: set[int] = set()
    instead: dict[int, tuple[int, tuple[str, ...]]] = {}
    for length, start in sorted(found, reverse=True):
        if -start not in taken and -start + length - 1 not in taken:
            instead[-start] = (length, _SEQUENCES[tuple(words[-start : -start + length])])
        taken.update(range(-start, -start + length))
    made: list[str] = []
    i = 0
    while i < len(words):
        length, parts = instead.get(i, (1, (words[i],)))
        made += parts
        i += length
    return made


_EXCEPTIONS = exceptions()
_SEQUENCES = {
    tuple(_split(piece, {})): parts
    for piece, parts in _EXCEPTIONS.items()
    if _PREFIX(piece) or _SUFFIX(piece) or next(_INFIX(piece), None)
}
_OPENERS = {words[0] for words in _SEQUENCES}
_LONGEST = max(map(len, _SEQUENCES))
