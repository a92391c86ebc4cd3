"""Records as JSON Lines: UTF-8, one record a line, optionally gzipped; writes are atomic."""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

Record = TypeVar("Record")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) for each non-blank line of `path` (`.gz` is unpacked).

    Raises:
        ValueError: no such file, a broken archive, text that is not UTF-8, or a line that is no
            JSON object; it names the file and the line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                row = parse_row(f"{path}, line {number}", raw)
                if row is not None:
                    yield number, row
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError(f"{path}: not a complete gzip file") from None


def parse_row(place: str, raw: bytes) -> dict[str, Any] | None:
    """One line's object; None for a blank line.

    Raises:
        ValueError: as `read_rows`; it begins with `place`.
    """
    try:
        line = raw.decode("utf-8")
        row = json.loads(line) if line.strip() else None
    except UnicodeDecodeError:
        raise ValueError(f"{place}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{place}: not JSON (too large)") from None
    if line.strip() and not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object")
    return row


def parse_record(place: str, row: dict[str, Any], record_type: type[Record]) -> Record:
    """The record that `record_line` wrote.

    Raises:
        ValueError: naming the place and the field that is missing or unknown.
    """
    fields = dataclasses.fields(record_type)  # type: ignore[arg-type]
    required = {f.name for f in fields if f.default is dataclasses.MISSING}
    if missing := sorted(required - row.keys()):
        raise ValueError(f"{place}: no field {missing[0]!r}")
    if unknown := sorted(row.keys() - {f.name for f in fields}):
        raise ValueError(f"{place}: unknown field {unknown[0]!r}")
    return record_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})


def iter_records(path: Path, record_type: type[Record]) -> Iterator[Record]:
    """Reads a file that `write_records` wrote, one record at a time.

    Raises:
        ValueError: as `read_rows` and `parse_record`.
    """
    for number, row in read_rows(path):
        yield parse_record(f"{path}, line {number}", row, record_type)


def read_records(path: Path, record_type: type[Record]) -> list[Record]:
    """All of `iter_records`."""
    return list(iter_records(path, record_type))


def record_line(record: Any) -> str:
    """A dataclass record as a line, its end included."""
    return json.dumps(vars(record), ensure_ascii=False) + "\n"


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Writes dataclass records one at a time; the file appears whole or not at all."""
    with _appearing(path) as file:
        file.writelines(record_line(record) for record in records)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to a file that appears whole or not at all."""
    with _appearing(path) as file:
        file.write(text)


@contextmanager
def _appearing(path: Path) -> Iterator[TextIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
