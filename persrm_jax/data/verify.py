"""Is a written negative what was asked for? A fault in words, or none; nothing is trusted."""

import re
from dataclasses import dataclass

from persrm_jax.data.minor import minor_fault
from persrm_jax.types import NegativeType

_OPENING = 240
"""Characters in which a writer that talks about its task gives itself away."""
_PREAMBLE = re.compile(
    r"""\A\W*(?:sure|certainly|of\ course|absolutely|okay|ok|no\ problem)\b\s*[,!.:]
    |\A\W*(?:here(?:\ is|'s|’s|\ are)|below\ (?:is|are)|the\ following\ is|this\ is)\b[^.!?]{0,80}
        \b(?:text|version|passage|response|continuation|rewrite|rewritten|imitation|style|example
        |sentence|paragraph|story|poem|replacement)s?\b
    |\b(?:here|below)(?:\ is|'s|’s|\ are)\b[^.!?\n]{0,80}:\W*\n
    |\A\W*the\ (?:above|following|given|original|previous)\ (?:text|passage)\b
    |\A\W*(?:rewritten|modified|revised|response|output|answer|text|version|continuation)\s*:""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL = re.compile(
    r"""\bas\ an?\ (?:ai|(?:large\ )?language\ model)\b
    |\A\W*(?:i(?:'m|’m|\ am)\ (?:very\ )?sorry|sorry|unfortunately|i\ apologi[sz]e)\b[^.!?]{0,60}
        \b(?:i|can(?:no|'|’)t|cannot|unable)\b
    |\A\W*i\ (?:can(?:no|'|’)t|cannot|am\ (?:not\ able|unable)|won(?:'|’)t|will\ not)\b[^.!?]{0,30}
        \b(?:help\ (?:you|with)|assist|comply|fulfil|fulfill|provide|write|create|generate|imitate)
        \b""",
    re.IGNORECASE | re.VERBOSE,
)
_POSTAMBLE = re.compile(
    r"\b(?:i hope (?:this|that|it) helps|let me know if|feel free to (?:ask|let)"
    r"|is there anything else|would you like me to)\b",
    re.IGNORECASE,
)
_ENDED = re.compile(r"[.!?…]['\"”’)\]*_]*\Z")
_TALK = re.compile(r"</?think>|<\|[^|]*\|>|\A\s*```|\[(?:your|insert) ", re.IGNORECASE)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class VerifyConfig:
    """What a written negative may be."""

    max_overlap: float = 0.3
    """Share of its 5-word runs that stand in the person's text."""
    max_length_ratio: float = 1.5
    """How many times as many words as the person's text, or as few: length must not tell."""
    min_words: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.max_overlap <= 1:
            raise ValueError(
                f"--written.verify.max-overlap {self.max_overlap}: must be above 0, at most 1"
            )
        if self.max_length_ratio < 1:
            raise ValueError(
                f"--written.verify.max-length-ratio {self.max_length_ratio}: must be 1 or more"
            )


def find_fault(kind: NegativeType, text: str, written: str, cfg: VerifyConfig) -> str | None:
    """Why `written` is no negative of that kind for the person's `text`; None where it is one.

    The first words of a fault name its sort, up to a colon, so that faults can be counted.
    """
    if kind == "minor":
        fault = minor_fault(text, written)
        return None if fault is None else f"not minor: {fault}"
    if kind not in ("mimic", "random"):
        raise ValueError(f"{kind}: nobody writes negatives of this kind")
    num_words, num_own = len(_WORD.findall(written)), len(_WORD.findall(text))
    if num_words < cfg.min_words:
        return f"too short: {num_words} words, at least {cfg.min_words}"
    if found := _PREAMBLE.search(written[:_OPENING]):
        return f"preamble: {found[0].strip()!r}"
    if found := _POSTAMBLE.search(written[-_OPENING:]):
        return f"postamble: {found[0].strip()!r}"
    if found := _REFUSAL.search(written[:_OPENING]):
        return f"refusal: {found[0].strip()!r}"
    if found := _TALK.search(written):
        return f"markup: {found[0].strip()!r}"
    if _ENDED.search(text) and not _ENDED.search(written):
        return f"unfinished: ends with {written[-20:]!r}"
    ratio = num_words / max(num_own, 1)
    if not 1 / cfg.max_length_ratio <= ratio <= cfg.max_length_ratio:
        return f"length: {ratio:.2f} of the person's words"
    if latin_share(text) > 0.9 >= latin_share(written):
        return f"script: {latin_share(written):.0%} of the letters are Latin"
    overlap = run_overlap(text, written)
    if overlap > cfg.max_overlap:
        return f"copy: {overlap:.0%} of its 5-word runs are the person's"
    return None


def run_overlap(text: str, written: str, length: int = 5) -> float:
    """Share of the runs of `length` words in `written` that stand in `text`, case and punctuation
    apart; of the whole, where it has fewer words."""

    def runs(of: str, n: int) -> list[tuple[str, ...]]:
        words = _WORD.findall(of.casefold())
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    n = max(1, min(length, len(_WORD.findall(written))))
    mine = runs(written, n)
    theirs = set(runs(text, n))
    return sum(run in theirs for run in mine) / max(len(mine), 1)


def latin_share(text: str) -> float:
    """Of its letters; 1 where it has none."""
    letters = [c for c in text if c.isalpha()]
    return sum(c < "\u0250" for c in letters) / len(letters) if letters else 1.0
