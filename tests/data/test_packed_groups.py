"""Groups laid side by side lose nothing, and each lies where its part of an update looks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persrm_jax.data.packed_groups import NUM_SHAPES, pack_groups
from persrm_jax.types import Groups


def make_groups(P: int, S: int, G: int, T: int, seed: int) -> Groups:
    """Prompts of one token and more, completions of none and more; no token twice."""
    rng = np.random.default_rng(seed)
    prompt_mask = np.arange(S) >= S - rng.integers(1, S + 1, P)[:, None]
    mask = np.arange(T) < rng.integers(0, T + 1, (P, G))[..., None]
    ids = 1 + np.arange(P * S + P * G * T, dtype=np.int32)
    prompt, own = ids[: P * S].reshape(P, S), ids[P * S :].reshape(P, G, T)
    return Groups(prompt * prompt_mask, prompt_mask, own * mask, mask)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    per_block=st.integers(1, 5),
    devices=st.integers(1, 3),
    parts=st.integers(1, 3),
    S=st.integers(1, 6),
    G=st.integers(1, 3),
    T=st.integers(1, 5),
    spare=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_every_token_has_its_place(
    per_block: int, devices: int, parts: int, S: int, G: int, T: int, spare: int, seed: int
) -> None:
    P = per_block * devices * parts
    groups = make_groups(P, S, G, T, seed)
    length = S + G * T + spare
    packed = pack_groups(groups, length, num_devices=devices, num_parts=parts)
    assert packed.tokens.shape[0] == devices * parts and packed.tokens.shape[2] == length
    placed = packed.group_ids > 0
    assert placed.sum() == groups.prompt_mask.sum() + groups.mask.sum()
    assert not packed.tokens[~placed].any()
    flat = packed.tokens.reshape(devices * parts, -1)
    for p in range(P):
        block = p // (P // devices) * parts + p % parts
        prompt = groups.prompt_tokens[p][groups.prompt_mask[p]]
        mine = packed.group_ids[block] == p + 1
        rows = np.flatnonzero(mine.any(axis=1))
        assert len(rows) == 1  # whole, in one row
        row = rows[0]
        inside = mine[row]
        assert np.flatnonzero(np.diff(inside.astype(int))).size <= 2  # in one run
        members = packed.member_ids[block, row][inside]
        tokens = packed.tokens[block, row][inside]
        positions = packed.positions[block, row][inside]
        assert tokens[members == 0].tolist() == prompt.tolist()
        assert positions[members == 0].tolist() == list(range(len(prompt)))
        for g in range(G):
            own = groups.tokens[p, g][groups.mask[p, g]]
            assert tokens[members == g + 1].tolist() == own.tolist()
            where = positions[members == g + 1]
            assert where.tolist() == list(range(len(prompt), len(prompt) + len(own)))
            before = [prompt[-1], *own[:-1]][: len(own)]
            assert flat[block][packed.sources[p, g, : len(own)]].tolist() == before


def test_short_groups_share_a_row_and_few_shapes_arise() -> None:
    shapes = set()
    for seed in range(40):
        groups = make_groups(16, 20, 4, 10, seed)
        packed = pack_groups(groups, 80)
        shapes.add(packed.tokens.shape[1])
        used = groups.prompt_mask.sum() + groups.mask.sum()
        assert packed.tokens.shape[1] * 80 < 16 * 60  # rows of a group each would take
        assert used <= packed.tokens.size
    assert len(shapes) <= NUM_SHAPES


def test_a_group_longer_than_a_row_is_named() -> None:
    groups = make_groups(1, 4, 2, 3, 0)._replace(
        prompt_mask=np.ones((1, 4), bool), mask=np.ones((1, 2, 3), bool)
    )
    with pytest.raises(ValueError, match=r"--rft.pack-length 9: a group of this step takes 10"):
        pack_groups(groups, 9)
