"""Judges that give every text a number of its own: a pair's verdict is the larger one's, whichever
side it is shown on."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from scipy.special import expit

from persrm_jax.data.batches import bucketed, encode_pairs, left_pad
from persrm_jax.data.prompts import BOTH_ORDERS, PromptConfig
from persrm_jax.distributed import fetch, place
from persrm_jax.evaluation.judge import EvalConfig, JudgePairs
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.params import Params
from persrm_jax.models.reward import rewards
from persrm_jax.sharding import batch_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Pair, Prediction, Verdict


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
    sharding, alone = batch_sharding(mesh), prompt.alone

    def judge(
        params: Params, pairs: Sequence[Pair], condition: str, label: str
    ) -> list[Prediction]:
        asked = [(pair, order) for pair in pairs for order in BOTH_ORDERS]
        rows = encode_pairs([p for p, _ in asked], [o for _, o in asked], tokenizer, alone)

        def batch(chosen: list[int], length: int) -> Any:
            return left_pad([rows[i] for i in chosen], tokenizer.pad_id, length)

        def of_batch(inputs: Any) -> jax.Array:
            return score(params, *place(inputs, sharding))

        found = in_batches(list(map(len, rows)), batch, of_batch, cfg.batch_size, advance)
        values = found.reshape(-1, 2)
        scores = 10 * expit(values)
        return in_both_orders(pairs, values, scores, condition=condition, label=label, seed=seed)

    return judge


def _rewards(
    model: ModelConfig, compute: ComputeConfig, params: Params, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    return rewards(params, model, tokens, mask, compute)


def in_batches(
    lengths: Sequence[int],
    batch: Callable[[list[int], int], Any],
    score: Callable[[Any], jax.Array],
    batch_size: int,
    advance: Callable[[int], object] = lambda done: None,
) -> Float[np.ndarray, " num_rows"]:
    """A number for each of many rows; rows of like length share a batch, so that little is padding.

    Args:
        lengths: of the rows, in tokens.
        batch: makes the inputs of chosen rows, padded to a length.
        score: [batch_size] numbers of such inputs.
        advance: told after each batch how many rows it held.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    values = np.empty(len(lengths))
    for begin in range(0, len(lengths), batch_size):
        rows = by_length[begin : begin + batch_size]
        # The last batch is filled up, so that it compiles nothing new.
        filled = rows + rows[-1:] * (batch_size - len(rows))
        found = fetch(score(batch(filled, bucketed(lengths[rows[-1]]))))
        values[rows] = np.asarray(found, np.float64)[: len(rows)]
        advance(len(rows))
    return values


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
