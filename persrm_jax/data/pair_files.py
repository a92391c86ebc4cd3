"""Pairs go to a file block by block, made by any number of processes; a run that was cut off goes
on after the last whole block."""

import multiprocessing
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from persrm_jax.data.pairs import BLOCK, Block, PairMaker
from persrm_jax.jsonl import record_line
from persrm_jax.types import Pair

_AHEAD = 2
"""Blocks under way for each process."""
_WORTHWHILE = 32
"""Blocks from which on further processes are started."""
_ID = re.compile(rb'\{"pair_id": "(\w+)-(\d+)"')


def write_pairs(
    path: Path,
    maker: PairMaker,
    names: Sequence[str],
    *,
    fill: Callable[[list[Pair]], list[Pair]] = list,
    processes: int = 1,
    advance: Callable[[int], Any] = lambda _: None,
) -> None:
    """Writes the pairs of the sets `names`. What the file already has is kept, but for its last
    block, which may not be whole.

    Args:
        fill: finishes the pairs of a block, or leaves some out.
        processes: that make blocks. The file is the same for any number of them.
        advance: told how many of the pairs asked for are dealt with.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = maker.blocks(*names)
    done = _drop_last_block(path, blocks)
    advance(sum(block.count for block in blocks[:done]))
    with path.open("ab") as file:
        todo = blocks[done:]
        for block, pairs in zip(todo, _made(maker, todo, processes), strict=True):
            file.write("".join(map(record_line, maker.deal(block, fill(pairs)))).encode())
            file.flush()
            advance(block.count)


def _drop_last_block(path: Path, blocks: Sequence[Block]) -> int:
    """Cuts a file back to blocks that are surely whole: all but the last, of which some pairs may
    be missing. Returns their number."""
    if not path.exists():
        return 0
    places = {(block.name, block.start): i for i, block in enumerate(blocks)}
    last, cut, end = -1, 0, 0
    with path.open("rb") as file:
        for line in file:
            found = _ID.match(line)
            if found is None:  # torn
                break
            start = int(found[2]) // BLOCK * BLOCK
            place = places[found[1].decode(), start]
            if place != last:
                last, cut = place, end
            end += len(line)
    os.truncate(path, cut)
    return max(last, 0)


def _made(maker: PairMaker, blocks: Sequence[Block], processes: int) -> Iterator[list[Pair]]:
    if processes < 2 or len(blocks) < _WORTHWHILE:
        yield from map(maker.make, blocks)
        return
    waiting: deque[Future[list[Pair]]] = deque()
    # Not forked, since JAX may be running threads here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, (maker.share(),)) as pool:
        try:
            for block in blocks:
                waiting.append(pool.submit(_make, block))
                if len(waiting) >= _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_MAKER: PairMaker
"""Of a process that makes blocks."""


def _start(state: dict[str, Any]) -> None:
    global _MAKER  # noqa: PLW0603
    _MAKER = PairMaker(**state)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's processes would outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _make(block: Block) -> list[Pair]:
    return _MAKER.make(block)
