"""Groups of completions -> rows that hold several groups each, padding left out."""

import numpy as np
from jaxtyping import Int

from persrm_jax.data.batches import best_fit
from persrm_jax.types import Groups, PackedRows

NUM_SHAPES = 4
"""Numbers of rows that a step may meet, each with programs of its own."""


def pack_groups(
    groups: Groups, length: int, *, num_devices: int = 1, num_parts: int = 1
) -> PackedRows:
    """Lays prompts and completions side by side, each group whole in a row, by best fit, the
    longest first.

    A block is what one device computes of one part: prompts p of a device's share with the same
    p modulo `num_parts`, as `training.step.split_parts` takes them.

    Args:
        groups: on the host.
        length: tokens of a row.
        num_devices: over which prompts are split, in order.
        num_parts: in which updates take them.

    Raises:
        ValueError: a group longer than a row.
    """
    prompt_mask, mask = np.asarray(groups.prompt_mask), np.asarray(groups.mask)
    P, G, T = mask.shape
    totals = prompt_mask.sum(axis=1) + mask.sum(axis=(1, 2))
    if totals.max() > length:
        raise ValueError(
            f"--rft.pack-length {length}: a group of this step takes {totals.max()} tokens"
        )
    # [P] -> [device, turn, part]: what lies in each block.
    turns = np.arange(P).reshape(num_devices, -1, num_parts)
    members = turns.swapaxes(1, 2).reshape(num_devices * num_parts, -1)
    lengths = totals.tolist()
    blocks = [
        best_fit(lengths, length, sorted(block, key=lambda p: -lengths[p]))
        for block in members.tolist()
    ]
    rows = _num_rows(max(map(len, blocks)), members.shape[1])
    shape = (len(members), rows, length)
    tokens, positions, group_ids, member_ids = (np.zeros(shape, np.int32) for _ in range(4))
    sources = np.zeros((P, G, T), np.int32)
    packed = PackedRows(tokens, positions, group_ids, member_ids, sources)
    for n, block in enumerate(blocks):
        for row, inside in enumerate(block):
            at = 0
            for p in inside:
                _lay(packed, groups, n, row, at, p)
                at += lengths[p]
    return packed


def _lay(packed: PackedRows, groups: Groups, n: int, row: int, start: int, p: int) -> None:
    """Puts group `p` into a row of block `n`, from `start` on."""
    tokens, positions, group_ids, member_ids, sources = packed
    offset, length = row * tokens.shape[2], int(groups.prompt_mask[p].sum())

    def put(ids: Int[np.ndarray, " t"], first_position: int, member: int, at: int) -> None:
        where = (n, row, slice(at, at + len(ids)))
        tokens[where] = ids
        positions[where] = first_position + np.arange(len(ids))
        group_ids[where] = p + 1
        member_ids[where] = member

    put(np.asarray(groups.prompt_tokens[p])[np.asarray(groups.prompt_mask[p])], 0, 0, start)
    last = start + length - 1
    at = start + length
    for g, kept in enumerate(np.asarray(groups.mask[p])):
        own = np.asarray(groups.tokens[p, g])[kept]
        put(own, length, g + 1, at)
        before = np.array([last, *range(at, at + len(own) - 1)])
        sources[p, g, : len(own)] = offset + before[: len(own)]
        at += len(own)


def _num_rows(needed: int, most: int) -> int:
    """`needed`, or a few more: one of `NUM_SHAPES` shares of `most`."""
    step = -(-most // NUM_SHAPES)
    return min(-(-needed // step) * step, most)
