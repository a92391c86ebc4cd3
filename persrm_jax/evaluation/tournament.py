"""Who meets whom, where candidates are compared two at a time."""

import numpy as np


def draw_pairs(num_candidates: int, opponents: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of candidates, each once, a < b.

    With at most `opponents` + 1 candidates all pairs. With more, the candidates are put in a circle
    in a seeded order, and each meets the `opponents` / 2 that follow it: so each has `opponents`
    opponents, and any two are linked by a chain of comparisons.

    Args:
        opponents: even.
    """
    assert opponents % 2 == 0
    if num_candidates <= opponents + 1:
        return [(a, b) for a in range(num_candidates) for b in range(a + 1, num_candidates)]
    circle = np.random.default_rng([seed, 11, num_candidates]).permutation(num_candidates).tolist()
    pairs = []
    for place, one in enumerate(circle):
        for step in range(1, opponents // 2 + 1):
            other = circle[(place + step) % num_candidates]
            pairs.append((min(one, other), max(one, other)))
    return sorted(pairs)
