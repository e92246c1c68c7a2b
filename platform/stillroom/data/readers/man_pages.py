"""Manual pages as plain text: the one-line summary of NAME, and the paragraphs of DESCRIPTION.

Reads both macro packages of troff, `man` and `mdoc`. What is laid out (tables, equations, synopses,
lists of files) is left out, for prose is what is wanted; nothing is formatted.
"""

import gzip
import re
from pathlib import Path

PROSE_SECTIONS = ("DESCRIPTION", "NOTES", "OVERVIEW", "DETAILS", "USAGE", "INTRODUCTION")
MAX_BYTES = 1 << 20

_COMMENT = re.compile(r"\\[\"#].*")
_GLYPHS = {
    r"\-": "-", r"\(em": "–", r"\(en": "–", r"\(hy": "-", r"\(aq": "'", r"\(oq": "'", r"\(cq": "'",
    r"\(lq": '"', r"\(rq": '"', r"\(dq": '"', r"\(bu": "", r"\(co": "©", r"\(tm": "™", r"\e": "\\",
    r"\~": " ", r"\ ": " ", r"\&": "", r"\|": "", r"\^": "", r"\/": "", r"\,": "", r"\:": "",
    r"\%": "", r"\c": "", r"\.": ".", r"\'": "'", r"\`": "`",
}  # fmt: skip
_GLYPH = re.compile("|".join(re.escape(name) for name in sorted(_GLYPHS, key=len, reverse=True)))
# Fonts, sizes, strings, registers, motions and other glyphs.
_ESCAPE = re.compile(
    r"\\(?:[fFmMkn*](?:\[[^\]]*\]|\(..|.)|s[-+]?\(?\d{1,2}|[hvwuXZ]'[^']*'|\[[^\]]*\]|\(..|.)"
)
_QUOTED = re.compile(r'"([^"]*)"')

_SECTIONS = ("SH", "Sh")
_PARAGRAPHS = (
    "PP",
    "P",
    "LP",
    "Pp",
    "SS",
    "Ss",
    "TP",
    "IP",
    "HP",
    "TQ",
    "It",
    "RS",
    "RE",
    "sp",
    "br",
)
_LAID_OUT = {
    "TS": "TE",
    "EQ": "EN",
    "nf": "fi",
    "EX": "EE",
    "Vb": "Ve",
    "Bd": "Ed",
    "de": ".",
    "ie": "",
}
# Macros whose arguments are text.
_INLINE = (
    "B", "I", "BR", "RB", "IR", "RI", "BI", "IB", "SM", "SB", "Ar", "Fl", "Cm", "Pa", "Em", "Sy",
    "Dq", "Sq", "Qq", "Li", "Va", "Ev", "Ic", "Fn", "Xr", "Ql", "Dv", "Er", "Tn", "No", "Vt", "Ft",
)  # fmt: skip
_JOINED = ("BR", "RB", "IR", "RI", "BI", "IB")  # whose arguments follow without a space


def read_man_page(file: Path) -> tuple[str, list[str]] | None:
    """The summary of a page, and the paragraphs of its prose.

    Returns:
        None for a page that only refers to another, and for one without a summary.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as opened:
            source = opened.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    if source.lstrip().startswith(".so "):
        return None
    sections = _sections(source)
    summary = _summary(" ".join(sections.get("NAME", [])))
    prose = [text for name in PROSE_SECTIONS for text in sections.get(name, [])]
    return (summary, prose) if summary and prose else None


def _summary(name_section: str) -> str:
    """`ls - list directory contents` → `list directory contents`."""
    _, dash, summary = re.sub(r"\s+[–—-]+\s+", "\0", name_section, count=1).partition("\0")
    return summary.strip() if dash else ""


def _sections(source: str) -> dict[str, list[str]]:
    """Section → its paragraphs."""
    sections: dict[str, list[str]] = {}
    paragraphs: list[str] = []
    words: list[str] = []
    page_name, until = "", None

    def end_paragraph() -> None:
        if text := " ".join(" ".join(words).split()):
            paragraphs.append(text)
        words.clear()

    for line in source.splitlines():
        macro, arguments = _parse(line)
        if until is not None:  # inside of what is laid out
            until = None if macro == until else until
        elif macro is None:
            words.append(arguments)
            if not arguments.strip():
                end_paragraph()
        elif macro in _SECTIONS:
            end_paragraph()
            title = arguments.replace('"', "").strip().upper()
            paragraphs = sections.setdefault(title, [])
        elif macro in _LAID_OUT:
            end_paragraph()
            until = _LAID_OUT[macro] or None
        elif macro in _PARAGRAPHS:
            end_paragraph()
        elif macro == "Nm":
            page_name = _arguments(arguments) or page_name
            words.append(page_name)
        elif macro == "Nd":
            words.append("- " + _arguments(arguments))
        elif macro in _INLINE:
            words.append(_arguments(arguments, "" if macro in _JOINED else " "))
    end_paragraph()
    return sections


def _parse(line: str) -> tuple[str | None, str]:
    """A line's macro, None for a line of text; and the rest, without escapes."""
    match = re.match(r"[.']\s*(\S+)\s*(.*)", line)
    if match is None:
        return None, "" if line.startswith((".", "'")) else _plain(line)
    macro = match[1]
    if macro.startswith(("\\", '"')):
        return "comment", ""
    return ("." if macro == "." else macro), match[2]


def _arguments(text: str, between: str = " ") -> str:
    """A macro's arguments as text: quotes group words."""
    text = _COMMENT.sub("", text)
    parts = re.findall(r'"[^"]*"|(?:\\.|\S)+', text)
    return _plain(between.join(part.strip('"') for part in parts))


def _plain(text: str) -> str:
    text = _COMMENT.sub("", text)
    text = _GLYPH.sub(lambda match: _GLYPHS[match[0]], text)
    return _ESCAPE.sub("", text)
