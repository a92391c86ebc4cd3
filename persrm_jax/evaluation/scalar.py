"""Judges that give every text a number of its own: a pair's verdict is the larger one's, whichever
side it is shown on. What texts follow alike is read once."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from scipy.special import expit

from persrm_jax.data.pair_rows import PairRow, alike, encode_alone, group_pairs, longest
from persrm_jax.data.prompts import BOTH_ORDERS, PromptConfig
from persrm_jax.distributed import fetch, place
from persrm_jax.evaluation.ask import padded
from persrm_jax.evaluation.judge import EvalConfig, JudgePairs
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.params import Params
from persrm_jax.models.reward import rewards
from persrm_jax.sharding import batch_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Groups, Pair, Prediction, Verdict


def make_scalar_judge(
    model: ModelConfig,
    cfg: EvalConfig,
    *,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    compute: ComputeConfig,
    seed: int,
    mesh: Mesh,
    advance: Callable[[int], object] = lambda done: None,
) -> JudgePairs:
    """Returns judge(params, pairs, condition, label) -> predictions by the rewards r of a decoder
    with a scalar head; scores are 10 sigmoid(r), so that a text which is as likely as not to beat
    one of reward 0 scores 5.

    Args:
        prompt: of it, how one text is shown alone.
        advance: told after each batch how many texts it held.
    """
    score = jax.jit(partial(_rewards, model, compute))

    def judge(
        params: Params, pairs: Sequence[Pair], condition: str, label: str
    ) -> list[Prediction]:
        values = score_pairs(
            encode_alone(pairs, tokenizer, prompt),
            partial(score, params),
            batch_size=cfg.batch_size,
            pad_id=tokenizer.pad_id,
            mesh=mesh,
            advance=advance,
        )
        scores = 10 * expit(values)
        return in_both_orders(pairs, values, scores, condition=condition, label=label, seed=seed)

    return judge


def _rewards(
    model: ModelConfig, compute: ComputeConfig, params: Params, groups: Groups
) -> Float[Array, "P G"]:
    return rewards(params, model, groups, compute)


def score_pairs(
    rows: Sequence[PairRow],
    score: Callable[[Groups], jax.Array],
    *,
    batch_size: int,
    pad_id: int,
    mesh: Mesh,
    advance: Callable[[int], object] = lambda done: None,
) -> Float[np.ndarray, "num_pairs 2"]:
    """A number for each text of many pairs.

    Args:
        score: [P, G] numbers of groups as `group_pairs` makes them.
        batch_size: texts at a time, rounded up to whole pairs on each device.
        advance: told after each batch how many texts it held.
    """
    sharding = batch_sharding(mesh)
    values = np.empty((len(rows), 2))
    for members, (num_groups, size) in _plan(rows, batch_size, mesh.shape["data"]):
        # The last batch is filled up, so that it compiles nothing new.
        filled = members + members[-1:] * (num_groups * size - len(members))
        groups = [[rows[i] for i in filled[at : at + size]] for at in range(0, len(filled), size)]
        start, length = longest([rows[i] for i in members])
        inputs = group_pairs(groups, size, (padded(start), padded(length)), pad_id)
        found = fetch(score(place(inputs, sharding)))
        values[members] = np.asarray(found, np.float64).reshape(-1, 2)[: len(members)]
        advance(2 * len(members))
    return values


def _plan(
    rows: Sequence[PairRow], batch_size: int, num_devices: int
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Batches of few tokens: pairs, and into how many groups of how many they go. Pairs that follow
    the same make a group on each device where that takes fewer tokens than a group a pair."""
    size = -(-batch_size // (2 * num_devices))
    whole = num_devices * size
    apart: list[int] = []
    for members in alike(rows):
        for at in range(0, len(members), whole):
            part = members[at : at + whole]
            start, length = map(padded, longest([rows[i] for i in part]))
            if num_devices * start + 2 * whole * length < sum(_tokens(rows[i]) for i in part):
                yield part, (num_devices, size)
            else:
                apart += part
    apart.sort(key=lambda i: _tokens(rows[i]))
    for at in range(0, len(apart), whole):
        yield apart[at : at + whole], (whole, 1)


def _tokens(row: PairRow) -> int:
    """That a pair takes by itself."""
    start, length = map(padded, longest([row]))
    return start + 2 * length


def in_both_orders(
    pairs: Sequence[Pair],
    values: Float[np.ndarray, "num_pairs 2"],
    scores: Float[np.ndarray, "num_pairs 2"],
    *,
    condition: str,
    label: str,
    seed: int,
) -> list[Prediction]:
    """Each pair's rows. Verdicts compare `values`, a tie where they are equal to the last bit.

    Args:
        values: of the chosen and of the rejected text.
        scores: the same on a scale from 0 to 10, which may round differences away.
    """
    predictions = []
    for pair, pair_values, pair_scores in zip(pairs, values.tolist(), scores.tolist(), strict=True):
        for order in BOTH_ORDERS:
            sides = slice(None) if order == "AB" else slice(None, None, -1)
            (a, b), (score_a, score_b) = pair_values[sides], pair_scores[sides]
            verdict: Verdict = "tie" if a == b else "A" if a > b else "B"
            predictions.append(
                Prediction(
                    pair_id=pair.pair_id,
                    order=order,
                    condition=condition,
                    model=label,
                    seed=seed,
                    sample=0,
                    score_a=score_a,
                    score_b=score_b,
                    verdict=verdict,
                    parsed=True,
                    tokens=0,
                    completion="",
                )
            )
    return predictions
