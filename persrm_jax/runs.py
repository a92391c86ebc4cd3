"""The run folder: config and provenance beside the results, and which stages are done."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import jax

from persrm_jax.distributed import is_main, on_main
from persrm_jax.jsonl import write_text

Config = TypeVar("Config")
PACKAGES = ("persrm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")


class RunFolder:
    """One run's files. `config.json`, `provenance.json`, `stages.json`, and what the stages write.

    Args:
        free: fields in which a run that goes on may differ from the folder's config.
        apart: fields that matter to the stage of their name alone; they may differ until it has
            begun, and the folder's config then follows.

    Raises:
        ValueError: the folder holds a run with another config, or is a file.
    """

    def __init__(
        self, path: Path, config: Any, *, free: Sequence[str] = (), apart: Sequence[str] = ()
    ) -> None:
        self.path = path
        on_main(lambda: self._open(config, free, apart))

    def _open(self, config: Any, free: Sequence[str], apart: Sequence[str]) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {path}: is a file, expected a folder")
        wanted = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        saved_path = path / "config.json"
        # A folder in which no stage has finished, and none was cut off, holds nothing that another
        # config could spoil.
        if saved_path.is_file() and (self.stages or any(path.glob("*.partial"))):
            saved = _saved_config(saved_path, type(config))
            unbegun = {name for name in apart if not (path / name).exists()} - self.stages.keys()
            if (difference := _difference(saved, wanted, {*free, *unbegun})) is not None:
                raise ValueError(
                    f"{path} holds a run with other settings ({difference}): "
                    "give another --out, or remove the folder"
                )
            if changed := {
                name: wanted[name] for name in unbegun if saved.get(name) != wanted[name]
            }:
                write_text(saved_path, json.dumps({**saved, **changed}, indent=2) + "\n")
        elif path.is_dir() and any(path.iterdir()) and not saved_path.is_file():
            raise ValueError(f"--out {path}: holds files but no run; give a new folder")
        else:
            write_text(saved_path, json.dumps(wanted, indent=2) + "\n")
            write_text(path / "provenance.json", json.dumps(provenance(), indent=2) + "\n")

    @property
    def stages(self) -> dict[str, float]:
        """Seconds that each finished stage took, in order."""
        return finished_stages(self.path)

    def is_done(self, stage: str) -> bool:
        """Whether `stage` has finished in this folder."""
        return stage in self.stages

    def reopen(self, stage: str) -> None:
        """Marks `stage` as not done, if it is."""
        stages = {name: seconds for name, seconds in self.stages.items() if name != stage}
        on_main(lambda: self._write_stages(stages))

    def _write_stages(self, stages: dict[str, float]) -> None:
        write_text(self.path / "stages.json", json.dumps(stages, indent=2) + "\n")

    def _withdraw(self) -> None:
        """Takes back what a new folder holds, if bad input ended its first stage."""
        files = list(self.path.iterdir())
        if {file.name for file in files} <= {"config.json", "provenance.json"}:
            for file in files:
                file.unlink()
            self.path.rmdir()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage and marks it done if it ends without an error. A stage that was cut off
        counts the time of the sitting that finished it."""
        start = time.perf_counter()
        try:
            yield
        except ValueError:
            if is_main():
                self._withdraw()
            raise
        stages = {**self.stages, name: round(time.perf_counter() - start, 2)}
        on_main(lambda: self._write_stages(stages))


def finished_stages(run: Path) -> dict[str, float]:
    """Seconds that each finished stage of a run took, in order."""
    path = run / "stages.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _saved_config(path: Path, kind: type) -> dict[str, Any]:
    """A saved config as JSON. Of fields that are newer than it, it has the defaults: what the code
    did before they were there."""
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        found = _rebuild(kind, saved)
    except (AttributeError, KeyError, TypeError):  # of another version: it differs
        return saved
    return dict(json.loads(json.dumps(dataclasses.asdict(found), default=str)))


def read_config_file(path: Path, kind: type[Config], part: str | None = None) -> Config:
    """The config that a run saved, as the dataclass it was; or a part of it: `rft.sampling`.

    Raises:
        ValueError: it was saved by a version with other fields.
    """
    saved = json.loads(path.read_text(encoding="utf-8"))
    try:
        for name in part.split(".") if part else ():
            saved = saved[name]
        return _rebuild(kind, saved)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a config of this version ({error})") from None


def _rebuild(hint: Any, value: Any) -> Any:
    """`value`, read from JSON, as the type that a config's field declares."""
    if get_origin(hint) is Annotated:
        return _rebuild(get_args(hint)[0], value)
    if get_origin(hint) in (Union, UnionType):
        return None if value is None else _rebuild(get_args(hint)[0], value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{name: _rebuild(hints[name], v) for name, v in value.items()})
    if get_origin(hint) is tuple:
        return tuple(value)
    return hint(value) if hint is Path else value


def _difference(saved: Any, wanted: Any, free: set[str], name: str = "") -> str | None:
    """The first field in which two configs differ, as a flag with both values."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in [*saved, *(k for k in wanted if k not in saved)]:
            flag = f"{name}.{key}" if name else key
            if flag not in free:
                found = _difference(saved.get(key), wanted.get(key), free, flag)
                if found is not None:
                    return found
        return None
    if saved == wanted:
        return None
    return f"--{name.replace('_', '-')} {saved}, now {wanted}"


def provenance() -> dict[str, Any]:
    """What it takes to get a number again: command, commit, versions, machine."""
    devices = jax.devices()
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    """Output of git in the source tree; empty where this is no checkout."""
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
