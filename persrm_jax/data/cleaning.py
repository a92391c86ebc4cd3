"""Raw texts -> clean passages of whole sentences."""

import re

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

# A sentence ends at . ! or ? (and closing quotes) where no lower-case letter follows, unless the
# stop belongs to an initial or a title.
_SENTENCE = re.compile(
    r"""\S.*?(?:(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|No))(?<!\b(?:Mrs|Gen|Gov|Rev|Sen))"""
    r"""[.!?]["'”’)\]]*(?=\s+[^a-z\s])|\Z)"""
)
_END = re.compile(r"""[.!?]["'”’)\]]*(?=\s)""")
_BLANK = re.compile(r"\n\s*\n")
_WORD = re.compile(r"[^\W\d_]+")
# Lines that no person wrote for the reader: headers of mail, quotes, legal notices, links alone.
_HEADERS = re.compile(
    r"^(?:(?:From|To|Cc|Bcc|Sent|Date|Subject|Message-ID|Content-Type) ?: .*(?:\n|\Z)){2,}",
    re.IGNORECASE | re.MULTILINE,
)
_BOILERPLATE = re.compile(
    r"""(?:
        -+\ ?(?:Original|Forwarded)\ Message.*
      | On\ .{5,80}\ wrote:
      | >.*
      | (?:Copyright|\(c\)|©).*
      | .*\ball\ rights\ reserved\b.*
      | (?:https?://|www\.)\S+
      | .*\b(?:unsubscribe|view\ (?:this\ email\ )?in\ (?:your|a)\ browser)\b.*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_LONGEST = 150
"""Characters of a line of boilerplate; a longer one is a paragraph of the person's."""
# A line from which on all is a signature, if few and short lines follow.
_CLOSE = re.compile(
    r"""--|Sent\ from\ my\ \w+.*
      | (?:(?:(?:Best|Kind|Warm|With\ kind)\ )?regards|Best\ wishes|Sincerely(?:\ yours)?
        |Yours\ (?:sincerely|truly|faithfully)|Cheers|Thanks|Best|Love),?""",
    re.IGNORECASE | re.VERBOSE,
)
_SIGNATURE_LINES, _SIGNATURE_WIDTH = 5, 60


def as_utf8(text: str) -> str:
    """The text, with `?` for what UTF-8 cannot say (lone surrogates)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clean_text(text: str) -> str:
    """Single spaces inside paragraphs, one blank line between them; what UTF-8 cannot say is
    replaced."""
    paragraphs = (" ".join(p.split()) for p in _BLANK.split(as_utf8(text)))
    return "\n\n".join(p for p in paragraphs if p)


def strip_boilerplate(text: str) -> str:
    """A raw text without the lines that its author did not write, and without a signature; a text
    of one line as it is."""
    lines = _HEADERS.sub("\n", text.replace("\r\n", "\n")).rstrip().split("\n")
    if len(lines) == 1:
        return lines[0]
    return "\n".join("" if _is_boilerplate(line) else line for line in _unsigned(lines))


def _is_boilerplate(line: str) -> bool:
    line = line.strip()
    return len(line) <= _LONGEST and _BOILERPLATE.fullmatch(line) is not None


def _unsigned(lines: list[str]) -> list[str]:
    """The lines before a signature, if there is one at the end."""
    for i in range(max(1, len(lines) - 1 - _SIGNATURE_LINES), len(lines)):
        if _CLOSE.fullmatch(lines[i].strip()):
            if all(len(line) <= _SIGNATURE_WIDTH for line in lines[i + 1 :]):
                return lines[:i]
    return lines


def english_share(text: str) -> float:
    """Share of a text's words that are among the commonest of English; of English prose about half,
    of other languages next to none."""
    words = _WORD.findall(text.lower())
    return sum(word in ENGLISH_STOP_WORDS for word in words) / max(len(words), 1)


def whole_sentences(text: str) -> str:
    """A text that was cut off, up to its last whole sentence; empty where there is none."""
    return text[: max((m.end() for m in _END.finditer(text)), default=0)]


def cut_passages(text: str, max_words: int) -> list[str]:
    """All of `text`, cleaned, as passages of whole sentences with at most `max_words` words each.

    A sentence longer than that is cut at a word.
    """
    passages: list[str] = []
    current, num_words = "", 0
    for paragraph in clean_text(text).split("\n\n"):
        gap = "\n\n"
        for sentence in _SENTENCE.findall(paragraph):
            words = sentence.split()
            for start in range(0, len(words), max_words):
                piece = words[start : start + max_words]
                if current and num_words + len(piece) > max_words:
                    passages.append(current)
                    current, num_words = "", 0
                current = current + (gap if current else "") + " ".join(piece)
                num_words += len(piece)
                gap = " "
    return [*passages, current] if current else passages
