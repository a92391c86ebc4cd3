"""Where texts come from: files and folders of several shapes, and datasets of the Hugging Face hub.

Every shape yields the same `Text`s, one at a time. The named shapes are those of LaMP (arXiv
2304.11406), LongLaMP (arXiv 2407.11016), PRISM's utterances (arXiv 2404.16019) and PersonaMem
(arXiv 2504.14225), by their authors' descriptions.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from persrm_jax.data.cleaning import as_utf8
from persrm_jax.jsonl import read_rows
from persrm_jax.types import Pool

Row = dict[str, Any]
Rows = Iterable[tuple[str, Row]]
"""Each with its place, for messages."""
_SUFFIXES = (".json", ".jsonl", ".gz", ".txt", ".csv")
Shape = Literal["rows", "lamp", "longlamp", "prism", "personamem"]


@dataclass(frozen=True)
class SourceConfig:
    """How the rows of `--data` are read."""

    shape: Shape = "rows"
    """Whose shape the rows have; `rows`: one text a row, in the fields named here."""
    author: str = "author"
    text: str = "text"
    doc_id: str = "doc_id"
    domain: str = "domain"
    prompt: str = "prompt"
    license: str = "license"
    split: str = "train"
    """Of a dataset on the hub: its split."""
    subset: str = ""
    """Of a dataset on the hub: its configuration."""


@dataclass(frozen=True)
class Text:
    """One text as it was found; `split` is None where it says none."""

    author: str
    doc_id: str
    domain: str
    split: Pool | None
    text: str
    prompt: str = ""
    license: str = ""


def read_texts(data: str, cfg: SourceConfig) -> Iterator[Text]:
    """The texts of a file (.jsonl, .jsonl.gz, .json), a folder (FOLDER/AUTHOR/*.txt), or a dataset
    on the hub (ORGANISATION/NAME), in their order.

    Raises:
        ValueError: no such data, a malformed row, or no texts; it names the file and the line.
    """
    rows, domain = _open(data, cfg)
    numbered: Counter[str] = Counter()
    ids: dict[int, str] = {}
    empty = True
    for place, row in rows:
        for place_of_text, fields in _SHAPES[cfg.shape](place, row, cfg):
            text = _text(place_of_text, fields, domain, numbered)
            here = place_of_text.removeprefix(f"{data}, ")
            if (first := ids.setdefault(hash(text.doc_id), here)) != here:
                raise ValueError(
                    f"{place_of_text}: doc_id {text.doc_id!r} is taken by {first}; give each text "
                    "its own, or leave the field out"
                )
            empty = False
            yield text
    if empty:
        raise ValueError(f"{data}: holds no texts")


def _open(data: str, cfg: SourceConfig) -> tuple[Rows, str]:
    """The rows, and what their domain is by default."""
    path = Path(data)
    if path.is_dir():
        return _folder(path), path.name
    if path.is_file() or path.suffix in _SUFFIXES:
        name = path.name.removesuffix(".gz")
        if name.endswith(".json"):
            return _json(path, cfg.text), name.removesuffix(".json")
        rows = ((f"{path}, line {line}", row) for line, row in read_rows(path))
        return rows, name.removesuffix(".jsonl")
    if data.count("/") == 1 and not data.startswith((".", "/")):
        return _hub(data, cfg), data.split("/")[1]
    raise ValueError(
        f"--data {data}: no such file or folder; give `personas`, `embedded`, a .jsonl, .jsonl.gz "
        "or .json file, a folder of AUTHOR/*.txt, or a dataset as ORGANISATION/NAME"
    )


def _folder(path: Path) -> Rows:
    files = sorted(path.glob("*/*.txt"))
    if not files:
        raise ValueError(f"{path}: expected a folder for each author with its texts, *.txt")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{file}: not UTF-8 text") from None
        author = file.parent.name
        yield str(file), {"author": author, "doc_id": f"{author}/{file.stem}", "text": text}


def _json(path: Path, text: str) -> Rows:
    """A list of rows, or rows by author, as PersRM-R1 has them: {author: [{prompt, output}]} or
    {author: [{prompt, response_A, response_B}]}, A being the author's; `text` is how the text's
    field is called."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    groups = content if isinstance(content, dict) else {"": content}
    for author, rows in groups.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: expected a list of objects, or such a list for each author")
        for number, row in enumerate(rows, start=1):
            place = f"{path}, {author and f'author {author!r}, '}row {number}"
            given = {"author": author} if author else {}
            for name in ("output", "response_A"):
                if name in row and text not in row:
                    given[text] = row[name]
            yield place, row | given


def _hub(name: str, cfg: SourceConfig) -> Rows:
    from datasets import load_dataset  # noqa: PLC0415

    try:
        rows = load_dataset(name, cfg.subset or None, split=cfg.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{name}, {cfg.split}, row {number}", dict(row)
    except (OSError, ValueError) as error:
        raise ValueError(f"--data {name}: cannot be read from the hub ({error})") from None


def _plain(place: str, row: Row, cfg: SourceConfig) -> Rows:
    names = {"split": "split"} | {
        name: getattr(cfg, name)
        for name in ("author", "text", "doc_id", "domain", "prompt", "license")
    }
    yield place, {ours: row[theirs] for ours, theirs in names.items() if theirs in row}


def _profile(place: str, row: Row, author: Any, own: Row) -> Rows:
    """A row about one person with a list of texts of theirs."""
    profile = row.get("profile")
    if isinstance(profile, str):  # as some copies of it have it
        try:
            profile = json.loads(profile)
        except (ValueError, RecursionError):
            raise ValueError(f"{place}: 'profile' is not JSON") from None
    if not isinstance(profile, list) or not all(isinstance(item, dict) for item in profile):
        raise ValueError(f"{place}: no list 'profile'; is --source.shape right?")
    for number, item in enumerate([own, *profile] if own else profile):
        text = next((item[n] for n in _TEXTS if item.get(n)), None)
        prompt = next((item[n] for n in _TITLES if item.get(n)), "")
        if text is not None:
            yield (
                f"{place}, text {number}",
                {"author": f"{author}", "text": text, "prompt": f"{prompt}"},
            )


_TEXTS = ("output", "abstract", "reviewText", "content", "text")
_TITLES = ("input", "title", "summary", "overall")


def _lamp(place: str, row: Row, _: SourceConfig) -> Rows:
    """{id, input, profile: [{id, text or abstract, title?}]}: a row's profile is one person's."""
    if "id" not in row:
        raise ValueError(f"{place}: no field 'id'; is --source.shape right?")
    yield from _profile(place, row, row["id"], {})


def _longlamp(place: str, row: Row, _: SourceConfig) -> Rows:
    """{name, reviewerId or author, input, output, profile}: the output is the person's, too."""
    author = next((row[n] for n in ("reviewerId", "name", "author") if row.get(n)), None)
    if author is None:
        raise ValueError(f"{place}: no field 'name', 'reviewerId' or 'author'")
    yield from _profile(place, row, author, {n: row[n] for n in ("input", "output") if n in row})


def _renamed(author: str, text: str) -> Callable[[str, Row, SourceConfig], Rows]:
    def read(place: str, row: Row, _: SourceConfig) -> Rows:
        for name in (author, text):
            if name not in row:
                raise ValueError(f"{place}: no field {name!r}; is --source.shape right?")
        yield place, {"author": f"{row[author]}", "text": row[text]}

    return read


_SHAPES: Mapping[str, Callable[[str, Row, SourceConfig], Rows]] = {
    "rows": _plain,
    "lamp": _lamp,
    "longlamp": _longlamp,
    "prism": _renamed("user_id", "user_prompt"),
    "personamem": _renamed("persona_id", "user_question_or_message"),
}


def _text(place: str, row: Row, domain: str, numbered: Counter[str]) -> Text:
    """Checks one row, and fills in what it leaves out."""
    for field in ("author", "text"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            fault = "empty" if isinstance(row.get(field), str) else "bad"
            fault = fault if field in row else "no field"
            raise ValueError(f"{place}: {fault} {field!r}; it must be a string that is not blank")
    for field in ("domain", "prompt", "license"):
        if not isinstance(row.get(field, ""), str):
            raise ValueError(f"{place}: bad {field!r}; it must be a string")
    author = row["author"].strip()
    numbered[author] += 1
    doc_id = row.get("doc_id", f"{author}-{numbered[author]}")
    if isinstance(doc_id, bool) or not isinstance(doc_id, str | int) or doc_id == "":
        raise ValueError(
            f"{place}: bad 'doc_id'; it must be a string that is not empty, or a whole number"
        )
    split = row.get("split")
    if split not in (None, "train", "test"):
        raise ValueError(f"{place}: split is {split!r}; it must be 'train' or 'test'")
    return Text(
        author=as_utf8(author),
        doc_id=as_utf8(str(doc_id)),
        domain=as_utf8(row.get("domain", domain)),
        split=split,
        text=row["text"],
        prompt=row.get("prompt", ""),
        license=as_utf8(row.get("license", "")),
    )
