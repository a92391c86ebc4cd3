"""Texts that are scored one at a time: every pair once, whatever it shares a batch with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persrm_jax.data.pair_rows import PairRow
from persrm_jax.evaluation.scalar import score_pairs
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.types import Groups


def random_rows(sizes: list[int], before: int, longest: int = 9) -> list[PairRow]:
    """So many pairs after each of several beginnings, mixed."""
    rng = np.random.default_rng(0)
    found = []
    for beginning, size in enumerate(sizes):
        start = rng.integers(1, 50, before + beginning % 3).tolist()
        for _ in range(size):
            one, other = (rng.integers(1, 50, rng.integers(1, longest)).tolist() for _ in range(2))
            found.append(PairRow(start, (one, other)))
    return [found[i] for i in rng.permutation(len(found))]


def number(before: list[int], text: list[int]) -> float:
    """Tells every text after every beginning apart."""
    return sum(before) + sum((i + 1) * token for i, token in enumerate(text)) / 1000


def count(groups: Groups) -> int:
    return groups.prompt_tokens.size + groups.tokens.size


@pytest.mark.parametrize("shape", ["1x1", "8x1"])
def test_every_text_gets_its_own_number(shape: str) -> None:
    """Groups of many pairs, of several batches, and of one pair."""
    rows = random_rows([13, 40, 1, 1, 2, 1], before=90)
    seen: list[Groups] = []
    done: list[int] = []

    def score(groups: Groups) -> jax.Array:
        seen.append(groups)
        before = jnp.sum(groups.prompt_tokens * groups.prompt_mask, axis=1)[:, None]
        places = jnp.arange(1, groups.tokens.shape[2] + 1)
        return before + jnp.sum(groups.tokens * groups.mask * places, axis=2) / 1000

    found = score_pairs(
        rows,
        score,
        batch_size=16,
        pad_id=3,
        mesh=make_mesh(MeshShape.parse(shape)),
        advance=done.append,
    )
    wanted = [[number(row.before, text) for text in row.texts] for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert sum(done) == 2 * len(rows)
    num_devices = int(shape[0])
    assert all(len(groups.tokens) % num_devices == 0 for groups in seen)
    shapes = {groups.tokens.shape for groups in seen}
    assert (num_devices, 16 // num_devices, 32) in shapes, "what begins alike is read once"
    assert any(size == 2 for _, size, _ in shapes), "what nobody shares, with its own pair alone"
    if shape == "1x1":
        apart = sum(96 + 2 * 32 for _ in rows)
        assert sum(map(count, seen)) < 0.75 * apart


def test_long_texts_after_short_beginnings_stay_apart() -> None:
    """Few of a kind: to fill up their batch would take more tokens than to read twice."""
    rows = random_rows([2, 2, 2], before=4, longest=200)
    seen: list[Groups] = []

    def score(groups: Groups) -> jax.Array:
        seen.append(groups)
        return jnp.zeros(groups.tokens.shape[:2])

    mesh = make_mesh(MeshShape(1, 1))
    score_pairs(rows, score, batch_size=12, pad_id=3, mesh=mesh)
    assert [groups.tokens.shape[:2] for groups in seen] == [(6, 2)]
