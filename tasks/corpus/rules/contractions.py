"""Pieces of English text that spaCy's tokenizer splits, or keeps whole, against its general rules.

Examples: don't, cannot, 10a.m., Mr., :-). The list equals spaCy's `lang/en/tokenizer_exceptions.py` and
`lang/tokenizer_exceptions.py` (version 3.8, MIT).
"""

from __future__ import annotations

_EXCLUDED = (
    "Ill",
    "ill",
    "Its",
    "its",
    "Hell",
    "hell",
    "Shell",
    "shell",
    "Shed",
    "shed",
    "were",
    "Were",
    "Well",
    "well",
    "Whore",
    "whore",
)
_QUESTIONS = (
    "who",
    "what",
    "when",
    "where",
    "why",
    "how",
    "there",
    "that",
    "this",
    "those",
)  # and these, without the s
_NEGATED = (
    "ca",
    "could",
    "do",
    "does",
    "did",
    "had",
    "may",
    "might",
    "must",
    "need",
    "ought",
    "sha",
    "should",
    "wo",
    "would",
)
_NEGATED_ALONE = ("ai", "are", "is", "was", "were", "have", "has", "dare")
_DROPPED_G = ("doin", "goin", "nothin", "nuthin", "ol", "somethin", "lovin", "havin")
_CUT = """y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not Can|not gon|na Gon|na got|ta Got|ta
let|'s Let|'s c'm|on C'm|on"""
_WHOLE = """\\t \\n — ' \\") <space> '' C++ 'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout
ma'am Ma'am o'clock O'clock em 'em ll 'll nuff 'nuff 'd ä. ö. ü.
Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans.
Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep.
Sept. Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd.
Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s.
:-| ><(((*> (o: :x :-) :') :3 :-)) >.< :))) o_0 O_O :-(( :-* :o 8) </3 ]= o.0 :(( =D :-0 :-P :) (= :D =[ (; =| ;-) (¬_¬)
^__^ (>_<) (*_*) :o) :/ (^_^) (ಠ_ಠ) xDD ;_; V.V :-} :| (-8 [: :() :-3 <33 :-p >:o ;) ಠ_ಠ @_@ :] )-: :X =3 o.O O.o ;-D
<3 (: :-D ^_^ 0.o :'( 0_o :((( =) -_- ;D 8D ): :* xD :> -__- v.v [-: o_O :'-) (-_-) >:( ^___^ o_o :-x :-o <333 (-: ಠ︵ಠ
8-) :1 XDD :O XD =/ (-; [= :-X :0 :-((( :-))) O_o =( 8-D v_v (._.) V_V :-] 0_0 >.> :-O <.< :-( :-/ :-> :} ¯\\(ツ)/¯ o.o
._. O.O :( :'-( 0.0 :P (╯°□°）╯︵┻━┻ =] :p :))"""


def exceptions() -> dict[str, tuple[str, ...]]:
    """Map from each piece to the words into which it is split."""
    found: dict[str, tuple[str, ...]] = {piece: (piece,) for piece in _WHOLE.split()}
    found |= {f"{letter}.": (f"{letter}.",) for letter in "abcdefghijklmnopqrstuvwxyz"}
    found |= {"".join(parts): parts for parts in (tuple(entry.split("|")) for entry in _CUT.split())}

    def add(*parts: str) -> None:
        for head in (parts[0], parts[0].title()):
            found[head + "".join(parts[1:])] = (head, *parts[1:])
            plain = tuple(part.replace("'", "") for part in parts[1:])
            found[head + "".join(plain)] = (head, *plain)

    add("i", "'m")
    add("i", "'m", "a")
    for word in ("i", "you", "he", "she", "it", "we", "they", *_QUESTIONS, "these"):
        for ending in (("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")):
            add(word, *ending)
    for word in ("i", "you", "we", "they", *_QUESTIONS, "these"):
        if word not in ("that", "this"):
            add(word, "'ve")
    for word in ("you", "we", "they", *_QUESTIONS, "these"):
        if word not in ("that", "this"):
            add(word, "'re")
    for word in ("he", "she", "it", *_QUESTIONS):
        if word != "those":
            add(word, "'s")
    for word in _NEGATED:
        add(word, "n't")
        add(word, "n't", "'ve")
    for word in ("could", "might", "must", "should", "would"):
        add(word, "'ve")
    for word in _NEGATED_ALONE:
        add(word, "n't")
    for word in _DROPPED_G:
        for head in (word, word.title()):
            found[head], found[head + "'"] = (head,), (head + "'",)
    for hour in range(1, 13):
        for half in ("a.m.", "am", "p.m.", "pm"):
            found[f"{hour}{half}"] = (str(hour), half)
    for unit in "CFKcfk":
        found[f"°{unit}."] = ("°", unit, ".")
    for piece in _EXCLUDED:
        found.pop(piece, None)
    curly = {
        piece.replace("'", "’"): tuple(part.replace("'", "’") for part in parts)
        for piece, parts in found.items()
        if "'" in piece
    }
    return found | curly
