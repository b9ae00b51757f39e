"""LaTeX as text: commands out, their text kept, mathematics as it is written.

No macro is expanded but those of the document that stand for plain text; what draws (tikzpicture and the like) is left out.
"""

from __future__ import annotations

import re
import unicodedata

from tasks.documents.document import Draft
from tasks.documents.encodings import decoded
from tasks.documents.tidy import one_line, table, tidy

_ACCENTS = {
    "'": "\u0301",
    "`": "\u0300",
    "^": "\u0302",
    '"': "\u0308",
    "~": "\u0303",
    "=": "\u0304",
    ".": "\u0307",
    "c": "\u0327",
    "v": "\u030c",
    "u": "\u0306",
    "H": "\u030b",
    "k": "\u0328",
    "r": "\u030a",
    "b": "\u0331",
    "d": "\u0323",
}
_LETTERS = {
    "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "aa": "å", "AA": "Å", "o": "ø", "O": "Ø", "l": "ł", "L":
    "Ł", "i": "ı", "S": "§", "P": "¶", "copyright": "©", "pounds": "£", "dots": "…", "ldots": "…", "textellipsis":
    "…", "LaTeX": "LaTeX", "TeX": "TeX", "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^",
    "textendash": "–", "textemdash": "—", "quad": " ", "qquad": " ", "textquoteleft": "‘", "textquoteright": "’",
    "textquotedblleft": "“", "textquotedblright": "”", "euro": "€", "textdegree": "°", "degree": "°",
    "textregistered": "®", "texttrademark": "™", "textbullet": "•", "slash": "/", "newline": "\n", "par": "\n\n",
    "item": "\n- ", "linebreak": "\n", "today": ""
}  # fmt: skip
_DROPPED = re.compile(
    r"\\(?:label|ref|eqref|pageref|autoref|cref|Cref|cite\w*|Cite\w*|nocite|index|bibliography|bibliographystyle|usepackage|input|"
    r"include|includegraphics|vspace|hspace|setlength|addtolength|setcounter|addtocounter|pagestyle|thispagestyle|graphicspath|"
    r"newpage|clearpage|phantomsection|addcontentsline|hypersetup|geometry|definecolor|color|fontsize|selectlanguage|newtheorem|"
    r"theoremstyle|renewcommand|DeclareMathOperator|pgfplotsset|usetikzlibrary|rule|markboth|markright|includepdf|tableofcontents)"
    r"\*?(?:\s*\[[^\]]*\])*(?:\s*\{[^{}]*\})*"
)
_SECTIONS = {
    "part": 1,
    "chapter": 1,
    "section": 2,
    "subsection": 3,
    "subsubsection": 4,
    "paragraph": 5,
    "subparagraph": 6,
}
_DRAWN = "tikzpicture|pspicture|thebibliography|filecontents\\*?|comment|pgfpicture|picture"
_MATH = "equation|align|gather|multline|eqnarray|displaymath|math|alignat|flalign"
_CODE = "verbatim|lstlisting|minted|Verbatim|alltt"


def read_latex(data: bytes) -> Draft:
    """Text of a document in LaTeX, or of a part of one."""
    text, encoding = decoded(data)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept: list[str] = []

    def keep(shown: str) -> str:
        kept.append(shown)
        return f"\0{len(kept) - 1}\1"

    text = re.sub(
        rf"\\begin\{{({_CODE})\}}(?:\[[^\]]*\]|\{{[^{{}}]*\}})*\n?(.*?)\\end\{{\1\}}",
        lambda m: "\n\n" + keep(f"```\n{m[2].strip(chr(10))}\n```") + "\n\n",
        text,
        flags=re.S,
    )
    text = re.sub(r"\\(?:verb\*?|lstinline)([|!+/\"@#])(.*?)\1", lambda m: keep(m[2]), text)
    text = re.sub(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*(?=\S))?", r"\1", text)
    meta = {"encoding": encoding}
    macros = _macros(text)
    for name in ("title", "author", "date"):
        if (said := _argument(text, name)) is not None:
            meta[name] = one_line(_plain(said, macros))
    meta["date"] = meta.get("date", "") if re.search(r"\d{4}", meta.get("date", "")) else ""
    if found := re.search(r"\\begin\{document\}(.*?)(?:\\end\{document\}|\Z)", text, re.S):
        text = found[1]
    title = f"\n\n# {meta['title']}\n\n" if meta.get("title") else ""
    text = text.replace("\\maketitle", title.replace("\\", "")) if "\\maketitle" in text else title + text
    text = re.sub(rf"\\begin\{{({_DRAWN})\}}.*?\\end\{{\1\}}", "", text, flags=re.S)
    text = re.sub(
        rf"\\begin\{{({_MATH})(\*?)\}}(.*?)\\end\{{\1\2\}}",
        lambda m: "\n\n" + keep(_formula(m[3], m[1])) + "\n\n",
        text,
        flags=re.S,
    )
    text = re.sub(
        r"(?<!\\)\$\$(.*?)(?<!\\)\$\$|\\\[(.*?)\\\]",
        lambda m: "\n\n" + keep(_formula(m[1] or m[2] or "", "")) + "\n\n",
        text,
        flags=re.S,
    )
    text = re.sub(
        r"(?<!\\)\$([^$]{1,2000}?)(?<!\\)\$|\\\((.{1,2000}?)\\\)",
        lambda m: keep(f"${' '.join((m[1] or m[2] or '').split())}$"),
        text,
        flags=re.S,
    )
    text = re.sub(
        r"\\begin\{(tabular[x*]?|longtable|array)\}(?:\[[^\]]*\])?(?:\{(?:[^{}]|\{[^{}]*\})*\})+(.*?)\\end\{\1\}",
        lambda m: "\n\n" + keep(_table(m[2], macros)) + "\n\n",
        text,
        flags=re.S,
    )
    text = _plain(text, macros)
    for _ in range(3):
        text = re.sub("\0(\\d+)\1", lambda m: kept[int(m[1])], text)
    text = "\n\n".join(_paragraph(block) for block in re.split(r"\n[ \t]*\n", text))
    return Draft((tidy(text),), meta)


def _paragraph(block: str) -> str:
    if "```" in block or block.lstrip().startswith("|"):
        return block.strip("\n")
    lines = re.split(r"\n(?=[ ]*(?:- |#+ ))|\v", block)
    return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def _macros(text: str) -> dict[str, str]:
    """Commands of the document without arguments that stand for a short text."""
    found = re.findall(r"\\(?:re)?(?:newcommand|def)\*?\s*\{?\\([A-Za-z]+)\}?\s*\{([^{}\\#]{0,200})\}", text)
    return dict(found)


def _argument(text: str, name: str) -> str | None:
    """The argument of a command, with braces in it."""
    found = re.search(rf"\\{name}\s*(?:\[[^\]]*\])?\s*\{{", text)
    if found is None:
        return None
    depth, at = 1, found.end()
    while at < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
        at += 1
    return text[found.end() : at - 1]


def _formula(text: str, name: str) -> str:
    text = re.sub(r"\\label\{[^{}]*\}|\\(?:nonumber|notag)\b", "", text)
    inner = " ".join(text.split())
    return f"$${inner}$$" if inner else ""


def _table(text: str, macros: dict[str, str]) -> str:
    text = re.sub(
        r"\\(?:hline|toprule|midrule|bottomrule|endhead|endfirsthead|cline\{[^{}]*\}|cmidrule(?:\([^)]*\))?\{[^{}]*\})",
        "",
        text,
    )
    rows = [
        [one_line(_plain(cell, macros)) for cell in re.split(r"(?<!\\)&", row)]
        for row in re.split(r"\\\\(?:\[[^\]]*\])?", text)
    ]
    return table(rows)


def _plain(text: str, macros: dict[str, str]) -> str:
    for name, meaning in macros.items():
        text = re.sub(rf"\\{name}(?![A-Za-z])\s?(?:\{{\}})?", meaning.replace("\\", ""), text)
    text = _DROPPED.sub("", text)
    text = re.sub(
        r"\\(?:newcommand|providecommand|def|newenvironment|renewenvironment)\*?\s*\{?\\?\w+\}?(?:\[[^\]]*\])*\s*(?:\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})+",
        "",
        text,
    )
    text = re.sub(r"\\([`'^\"~=.])\s*(?:\{\\?([A-Za-z])\}|\\?([A-Za-z]))", _accented, text)
    text = re.sub(r"\\([cvuHkrbd])(?:\s*\{\\?([A-Za-z])\}|\s+([A-Za-z])(?![A-Za-z]))", _accented, text)
    text = re.sub(r"~", " ", text.replace("\\~", "\2")).replace("\2", "~")
    text = re.sub(r"\\\\\*?(?:\[[^\]]*\])?", "\v", text)
    text = text.replace("---", "—").replace("--", "–").replace("``", "“").replace("''", "”")
    for name, level in _SECTIONS.items():
        while (found := re.search(rf"\\{name}\*?(?=\s*[\[{{])", text)) is not None:
            title = _argument(text[found.start() :], rf"{name}\*?")
            if title is None:
                break
            rest = text[found.start() :]
            opened = re.match(rf"\\{name}\*?\s*(?:\[[^\]]*\])?\s*\{{", rest)
            if opened is None:
                text = text[: found.start()] + rest[len(found[0]) :]
                continue
            heading = f"{'#' * level} {' '.join(title.split())}"
            text = f"{text[: found.start()]}\n\n{heading}\n\n{rest[opened.end() + len(title) + 1 :]}"
    text = re.sub(
        r"\\(?:href|textcolor|colorbox|hyperref|parbox|minipage|resizebox|scalebox)\*?(?:\[[^\]]*\])?\s*\{[^{}]*\}",
        "",
        text,
    )
    text = re.sub(
        r"\\(?:footnote|footnotetext|thanks)\s*(?:\[[^\]]*\])?\{((?:[^{}]|\{[^{}]*\})*)\}", r" (\1)", text
    )
    text = re.sub(r"\\(?:begin|end)\s*\{(?:[^{}]*)\}(?:\[[^\]]*\])*(?:\{[^{}]*\})?", "\n\n", text)
    text = re.sub(r"\\item\s*\[([^\]]*)\]", r"\n- \1 ", text)
    text = re.sub(
        r"\\([A-Za-z]+)\*?(?:\s*\[[^\[\]]*\](?=\s*\{))?[ \t]?", lambda m: _LETTERS.get(m[1], ""), text
    )
    text = re.sub(r"\\([%&#_${}])", lambda m: {"{": "\3", "}": "\4"}.get(m[1], m[1]), text)
    text = re.sub(r"\\[,;:!/ >@-]", " ", text)
    text = text.replace("{", "").replace("}", "").replace("\3", "{").replace("\4", "}")
    return text


def _accented(found: re.Match[str]) -> str:
    letter = found[2] or found[3]
    return unicodedata.normalize("NFC", letter + _ACCENTS[found[1]])
