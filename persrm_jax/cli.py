"""Command lines: a preset's name, then flags that override its fields."""

import contextlib
import difflib
import dis
import io
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro
from rich.console import Console
from rich.text import Text

from persrm_jax.distributed import ClusterConfig
from persrm_jax.sharding import MeshShape

Config = TypeVar("Config")

Mesh = Annotated[
    MeshShape,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="DATAxMODEL",
        instance_from_str=lambda args: MeshShape.parse(args[0]),
        is_instance=lambda value: isinstance(value, MeshShape),
        str_from_instance=lambda mesh: [str(mesh)],
    ),
]
Cluster = Annotated[ClusterConfig, tyro.conf.arg(name="")]
"""Its flags go without a prefix: `--num-processes`."""
From = Annotated[str, tyro.conf.arg(name="from")]
"""A flag whose name is a word of Python's."""
BAD_INPUT = 2
INTERRUPTED = 130


def parse_preset(
    presets: Mapping[str, Config], default: str, prog: str, args: Sequence[str]
) -> Config:
    """The preset that the first word names (`default` where it is a flag), overridden by the rest.

    Raises:
        ValueError: an unknown preset or flag; it offers the nearest.
    """
    name, rest = default, list(args)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
    if name not in presets:
        raise ValueError(
            f"unknown preset {name!r}{_nearest(name, presets)}; presets: {', '.join(presets)}"
        )
    preset = presets[name]
    return parse_flags(type(preset), prog, rest, preset)


def parse_flags(
    kind: type[Config], prog: str, args: Sequence[str], default: Config | None = None
) -> Config:
    """A config dataclass from flags.

    Raises:
        ValueError: an unknown flag; it offers the nearest.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            config, unknown = tyro.cli(
                kind,
                prog=prog,
                args=list(args),
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
            )
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        # A misspelt flag that is required is missing too; its spelling is what helps.
        _refuse_unknown(kind, args)
        raise ValueError(_sentence(box.getvalue())) from None
    _refuse_unknown(kind, unknown)
    for word in unknown:
        raise ValueError(f"unexpected argument {word!r}: a preset goes first, flags start with --")
    return config


def _refuse_unknown(kind: Any, words: Sequence[str]) -> None:
    known = _flags(kind)
    for word in words:
        flag = word.split("=")[0]
        positive = flag.replace("_", "-").replace("--no-", "--", 1)
        if flag.startswith("--") and positive not in (*known, "--help"):
            raise ValueError(f"unknown flag {flag}{_nearest(flag, known)}")


def _sentence(box: str) -> str:
    """The message in a box that tyro drew, between its title and its help."""
    blocks = re.split(r"(?m)^.*[─-]{4,}.*$", box)
    texts = [" ".join(line.strip(" │") for line in b.splitlines()).strip() for b in blocks]
    texts = [text for text in texts if text]
    message = texts[0] if "─" in box else texts[1]  # without a terminal the title is a block
    return re.sub(r"^Error parsing (\w*Config: |\S+: (?=--))", "", message)


def _flags(kind: Any, prefix: str = "--") -> list[str]:
    """Every flag of a config, nested fields dotted."""
    flags = []
    for name, hint in get_type_hints(kind).items():
        if hint is ClusterConfig:
            flags += _flags(hint, prefix)
            continue
        dashed = name.rstrip("_").replace("_", "-")
        flags.append(prefix + dashed)
        nested = next(
            (t for t in (hint, *get_args(hint)) if hasattr(t, "__dataclass_fields__")), None
        )
        if nested not in (None, MeshShape):
            flags += _flags(nested, f"{prefix}{dashed}.")
    return flags


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word.replace("_", "-"), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def run_main(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: bad input ends with one sentence and exit code 2, Ctrl-C with 130. A
    ValueError that nobody raised on purpose is a fault, and shows where it is."""
    console = Console(stderr=True)
    try:
        main(sys.argv[1:])
    except ValueError as error:
        if not _is_said(error):
            raise
        sentence = Text.assemble(("error:", "bold red"), f" {error}")
        console.print(sentence, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        # Nothing that is saved now may be lost to a second, impatient Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.print("[bold]interrupted:[/] the same command goes on from here")
        sys.exit(INTERRUPTED)


def _is_said(error: ValueError) -> bool:
    """Whether a `raise` raised it, and not an operation, as of arrays that do not fit."""
    frame = error.__traceback__
    assert frame is not None
    while frame.tb_next is not None:
        frame = frame.tb_next
    return dis.opname[frame.tb_frame.f_code.co_code[frame.tb_lasti]] == "RAISE_VARARGS"
