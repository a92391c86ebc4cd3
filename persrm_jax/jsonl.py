"""Records as JSON Lines: UTF-8, one record a line, optionally gzipped; writes are atomic."""

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

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
                try:
                    line = raw.decode("utf-8")
                    row = json.loads(line) if line.strip() else None
                except UnicodeDecodeError:
                    raise ValueError(f"{path}, line {number}: not UTF-8 text") from None
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
                except (ValueError, RecursionError):
                    raise ValueError(f"{path}, line {number}: not JSON (too large)") from None
                if not line.strip():
                    continue
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number}: expected a JSON object")
                yield number, row
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError(f"{path}: not a complete gzip file") from None


def read_records(path: Path, record_type: type[Record]) -> list[Record]:
    """Reads a file that `write_records` wrote.

    Raises:
        ValueError: naming the file, the line and the field that is missing or unknown.
    """
    fields = {f.name: f for f in dataclasses.fields(record_type)}  # type: ignore[arg-type]
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    records = []
    for number, row in read_rows(path):
        if missing := sorted(required - row.keys()):
            raise ValueError(f"{path}, line {number}: no field {missing[0]!r}")
        if unknown := sorted(row.keys() - fields.keys()):
            raise ValueError(f"{path}, line {number}: unknown field {unknown[0]!r}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        records.append(record_type(**values))
    return records


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Writes dataclass records; the file appears whole or not at all."""
    lines = (json.dumps(dataclasses.asdict(record), ensure_ascii=False) for record in records)
    write_text(path, "".join(line + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Writes `text` to a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
