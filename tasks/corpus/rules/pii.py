"""Personal data: replace e-mail addresses, IP addresses and telephone numbers by a placeholder for their kind.

The placeholders are Dolma's (Soldaini et al. 2024, arXiv:2402.00159, section 3.1.3). The rules find Dolma's telephone
numbers and datatrove's e-mail and public IP addresses (`pipeline/formatters/pii.py`), and besides telephone numbers in
the form of ITU-T E.164 (a plus sign or 00, the country, at most 15 digits), in British and in French groups. They exclude
look-alikes: numbers of sections and versions, page ranges, ratios, times, ISBNs.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import polars as pl

from tasks.corpus.rules.rule import Edited, Family, TextBatch

KINDS = ("email", "ip", "phone")
EMAIL, IP, PHONE = "|||EMAIL_ADDRESS|||", "|||IP_ADDRESS|||", "|||PHONE_NUMBER|||"

_HINT = (
    r"[A-Za-z0-9_%+'.-]@[A-Za-z0-9-]|[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]"
    r"|[0-9]{3}\)? ?[-. ]?[0-9]{3}[-.][0-9]{4}|\+[1-9][-. ()/0-9]{8}|00[1-9][0-9]{0,2}[-. /]"
    r"|0[1-9](?:[ .-][0-9]{2}){4}|0[1-9][0-9]{1,3}\)?[ -][0-9]{3,4}[ -]?[0-9]{3,4}"
    r"|[0-9)][\x{a0}\x{2007}-\x{2011}\x{202f}][(0-9]"
)
"""Matches in every text with such data, and in few others."""
_NEEDED = _HINT.replace(
    "00[1-9][0-9]{0,2}[-. /]",
    r"(?:^|[^0-9A-Za-z_.+/-])00[1-9][0-9]{0,2}[-. /(]|\(0[1-9][0-9]{1,3}\)[0-9]",
)
"""Matches in each of those that `mask` changes. Nine tenths of the hints are years, as in `2001 to 2009`, which hold no
country's code: a digit stands before it."""

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+'-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+?1[-. ]?)?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-.])"  # North America
    r"[2-9][0-9]{2}[-.][0-9]{4}(?![\w-]|\.[0-9])"
    r"|(?<![\w.+-])\+[1-9][0-9]{0,2}(?:[-. ]\(?[0-9]{2,4}\)?){2,5}(?!\w|[-.][0-9])"  # international, in groups
    r"|(?<![\w.+-])\+[1-9][0-9]{9,14}(?!\w|[-.][0-9])"  # without groups
    r"|(?<![\w.+/-])(?:\+|00)[1-9][0-9]{0,2}(?:[-. /]?\(0\)[-. /]?[0-9]{1,8})?"  # with the country's code
    r"(?:[-. /]\(?[0-9]{1,8}\)?){1,5}(?!\w|[-./][0-9])"
    r"|(?<![\w.+/-])(?<![0-9][ .-])0[1-9](?:(?: [0-9]{2}){4}|(?:\.[0-9]{2}){4}|(?:-[0-9]{2}){4})(?!\w|[-. ][0-9])"  # France
    r"|(?<![\w.+/-])(?<![0-9][ .-])(?:\(0[1-37-8][0-9]{1,3}\) ?|0[1-37-8][0-9]{1,3}[ -])"  # Britain
    r"[0-9]{3,4}[ -]?[0-9]{3,4}(?!\w|[-. ][0-9])"
)
_TYPESET = re.compile("[0-9)][\u00a0\u2007-\u2011\u202f][(0-9]")
_TYPED = {**dict.fromkeys(map(ord, "\u00a0\u2007\u2008\u2009\u200a\u202f"), " "), 0x2010: "-", 0x2011: "-"}
"""The spaces and hyphens of typesetting, as they are typed."""
_NUMBERED = re.compile(
    r"(?:\b(?:sections?|sec|chapters?|ch|versions?|ver|v|release|figures?|fig|tables?|tab|parts?|articles?|art|clauses?|"
    r"rules?|exercises?|examples?|problems?|theorem|lemma|equations?|eq|appendix|item|step|page|pp?|paragraphs?|para|"
    r"subsections?|sub-?clauses?|requirements?|provisions?|annex|modules?|units?|lessons?|build|firmware|kernel|release|"
    r"nos?|numbers?)\.?|§)\s*$",
    re.IGNORECASE,
)
_OF_A_TEXT = re.compile(
    r"\s*\)?,?\s+(?:of|in|to|under|from)\s+(?:(?:the|this|that|our|its|an?)\s+)?(?:[\w-]+\s+){0,2}?(?:standards?|codes?|"
    r"sections?|chapters?|documents?|documentation|specifications?|spec|reports?|manuals?|guides?|guidelines?|rules?|"
    r"regulations?|acts?|laws?|treaty|agreements?|contracts?|directives?|recommendations?|books?|syllabus|handbook|"
    r"RFC|ISO|IEC|IEEE|ANSI|DIN|EN)\b",
    re.IGNORECASE,
)
_DOCUMENTATION = ipaddress.ip_network("2001:db8::/32")
_EXAMPLES = tuple(map(ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")))
_BEFORE = 24
_AFTER = 80


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with placeholders, and the number of placeholders of each kind in it."""
    found: Counter[str] = Counter()

    def put(kind: str, sign: str, real: Callable[[re.Match[str]], bool]) -> Callable[[re.Match[str]], str]:
        def replaced(match: re.Match[str]) -> str:
            if not real(match):
                return match.group()
            found[kind] += 1
            return sign

        return replaced

    text = _EMAIL.sub(put("email", EMAIL, lambda match: True), text)
    text = _IPV6.sub(put("ip", IP, _is_ipv6), text)
    text = _IPV4.sub(put("ip", IP, _is_ipv4), text)
    if _TYPESET.search(text):
        typed = text.translate(_TYPED)  # of the same length
        for match in reversed([match for match in _PHONE.finditer(typed) if _is_phone(match)]):
            text = text[: match.start()] + PHONE + text[match.end() :]
            found["phone"] += 1
    else:
        text = _PHONE.sub(put("phone", PHONE, _is_phone), text)
    return text, found


def edit(batch: TextBatch, keep: np.ndarray) -> Edited:
    """The texts to keep, masked. It is a loop over the few texts with a possible match."""
    texts = batch.texts.filter(pl.Series(keep))
    hinted = texts.str.contains(_HINT).arg_true()
    rows = hinted.filter(texts.gather(hinted).str.contains(_NEEDED)).to_numpy()
    counts = {kind: np.zeros(len(texts), np.int64) for kind in KINDS}
    masked = []
    for row, text in zip(rows, texts.gather(pl.Series(rows)).to_list(), strict=True):
        changed, found = mask(text)
        masked.append(changed)
        for kind, count in found.items():
            counts[kind][row] = count
    if any(count.any() for count in counts.values()):
        texts = texts.scatter(pl.Series(rows), pl.Series(masked, dtype=pl.String))
    return Edited(texts, counts)


FAMILY = Family((), edit)


def _is_ipv4(match: re.Match[str]) -> bool:
    """Whether the match is a public address, or one reserved for documentation, and not a section or version number.

    Section numbers consist of single digits, or a word that names them stands before them, or the text that has such
    sections after them ("4.18.22.10 of the standard").
    """
    try:
        address = ipaddress.IPv4Address(match.group())
    except ValueError:
        return False
    if all(len(part) == 1 for part in match.group().split(".")) or _NUMBERED.search(_before(match)):
        return False
    if _OF_A_TEXT.match(match.string, match.end(), match.end() + _AFTER):
        return False
    return (address.is_global and not address.is_multicast) or any(address in some for some in _EXAMPLES)


def _is_ipv6(match: re.Match[str]) -> bool:
    groups = [group for group in match.group().split(":") if group]
    if len(groups) < 3 or max(map(len, groups)) < 3 or not re.search(r"[0-9]", match.group()):
        return False  # a ratio, a time, or a C++ name
    try:
        address = ipaddress.IPv6Address(match.group())
    except ValueError:
        return False
    return (address.is_global and not address.is_multicast) or address in _DOCUMENTATION


def _is_phone(match: re.Match[str]) -> bool:
    digits, written = sum(map(str.isdigit, match.group())), match.group().lstrip("(")
    most = 11 if written[0] == "0" and written[1] != "0" else 15  # within a country, or with its code
    return 10 <= digits <= most and not _NUMBERED.search(_before(match))


def _before(match: re.Match[str]) -> str:
    return match.string[max(match.start() - _BEFORE, 0) : match.start()]
