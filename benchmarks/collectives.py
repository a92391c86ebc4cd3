"""Which collective operations a compiled program holds, read from its HLO."""

import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SHAPE = r"(?:pred|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]"
_FUSED = "%all-reduce-scatter"
"""What TPUs call the computation of a reduce-scatter: its text has an all-reduce and a slice."""
_OPERATION = re.compile(rf"= (\(?{_SHAPE}.*?) ({'|'.join(KINDS)})(-start)?\(")


class Collective(NamedTuple):
    """One operation in the program's text, however often a loop runs it."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    """Of its results; an asynchronous one names its operands too."""


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled module. A reduce-scatter that a TPU fuses counts as one, not as
    the all-reduce inside the fusion."""
    found = []
    is_fused = False
    for line in hlo.splitlines():
        if line.startswith(("%", "ENTRY")):  # a computation begins
            is_fused = line.startswith(_FUSED)
        if match := _OPERATION.search(line):
            shapes = tuple(
                tuple(int(n) for n in dims.split(",") if n) for dims in re.findall(_SHAPE, match[1])
            )
            found.append(Collective("reduce-scatter" if is_fused else match[3], shapes))
    return found
