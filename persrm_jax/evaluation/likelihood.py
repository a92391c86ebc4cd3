"""Log-likelihood of each candidate after the person's texts: what a language model knows of a style
before it is taught to judge.

The model reads plain text, no chat: each exemplar after a blank line, then where the pair has one
the prompt that the candidates answer, after a blank line too, then a blank line and the candidate:

    "\\n\\n" exemplar 1 "\\n\\n" exemplar 2 ... "\\n\\n" prompt "\\n\\n" candidate

The blank line comes first, too, so that without exemplars the candidate's first token still follows
something, and always the same. Only the candidate's tokens count.

`likelihood` is their mean log-probability, in nats a token. A sum would prefer the shorter text
whoever wrote it, since every further token lowers it; the mean is fair to length, and favours texts
that are easy to foretell whoever wrote them. `likelihood_gain` answers that: the mean less the same
candidate's mean without the exemplars, which is the pointwise mutual information of candidate and
exemplars a token. Its sum would grow with length where exemplars help at all, as the same topic or
plain repetition does.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from scipy.special import expit

from kernels.linear_logprob import linear_logprob
from persrm_jax.data.pair_rows import PairRow
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.evaluation.judge import EvalConfig, JudgePairs
from persrm_jax.evaluation.scalar import in_both_orders, score_pairs
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.groups import completion_states
from persrm_jax.models.params import Params
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Groups, Pair, Prediction

BLANK_LINE = "\n\n"


def make_likelihood(
    model: ModelConfig,
    cfg: EvalConfig,
    *,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    compute: ComputeConfig,
    seed: int,
    mesh: Mesh,
    is_gain: bool = False,
    advance: Callable[[int], object] = lambda done: None,
) -> JudgePairs:
    """Returns judge(params, pairs, condition, label) -> predictions by log-likelihood. Scores are
    10 p, p the geometric mean of the tokens' probabilities; of a gain g, 10 sigmoid(g).

    Args:
        prompt: of it, `max_tokens` bounds a text with its exemplars.
        is_gain: takes off what the candidate's likelihood is without exemplars; a pair without
            exemplars is then a tie.
        advance: told after each batch how many candidates it held; each counts twice for a gain.
    """
    score = jax.jit(partial(_mean_logprobs, model, compute))

    def mean_logprobs(params: Params, rows: Sequence[PairRow]) -> np.ndarray:
        return score_pairs(
            rows,
            partial(score, params),
            batch_size=cfg.batch_size,
            pad_id=tokenizer.pad_id,
            mesh=mesh,
            advance=advance,
        )

    def judge(
        params: Params, pairs: Sequence[Pair], condition: str, label: str
    ) -> list[Prediction]:
        values = mean_logprobs(params, encode_candidates(pairs, tokenizer, prompt))
        scores = 10 * np.exp(values)
        if is_gain:
            bare = encode_candidates(pairs, tokenizer, prompt, with_exemplars=False)
            # Batches of other lengths round otherwise: no exemplars, no gain, to the last bit.
            is_shown = np.array([[bool(pair.exemplars)] for pair in pairs])
            values = np.where(is_shown, values - mean_logprobs(params, bare), 0.0)
            scores = 10 * expit(values)
        return in_both_orders(pairs, values, scores, condition=condition, label=label, seed=seed)

    return judge


def encode_candidates(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    cfg: PromptConfig,
    *,
    with_exemplars: bool = True,
) -> list[PairRow]:
    """Each pair's candidates, and what comes before them. They are encoded by themselves, so that
    the same text is the same tokens after anything.

    Raises:
        ValueError: a text with its exemplars is longer than `cfg.max_tokens`.
    """
    rows = []
    for pair in pairs:
        shown = (*(pair.exemplars if with_exemplars else ()), pair.prompt)
        context = "".join(BLANK_LINE + text for text in shown if text)
        before = tokenizer.encode(context + BLANK_LINE)
        row = PairRow(before, (tokenizer.encode(pair.chosen), tokenizer.encode(pair.rejected)))
        longest = len(before) + max(map(len, row.texts))
        if longest > cfg.max_tokens:
            raise ValueError(
                f"pair {pair.pair_id}: a candidate after its exemplars takes {longest} tokens and "
                f"--prompt.max-tokens is {cfg.max_tokens}; lower --pairs.num-exemplars or "
                "--corpus.max-words"
            )
        rows.append(row)
    return rows


def _mean_logprobs(
    model: ModelConfig, compute: ComputeConfig, params: Params, groups: Groups
) -> Float[Array, "P G"]:
    """Means over each text's tokens."""
    hidden = completion_states(params, model, groups, compute, shared=True)
    logprobs, _ = linear_logprob(
        hidden.reshape(-1, hidden.shape[3]), vocab_weight(params), groups.tokens.reshape(-1)
    )
    logprobs = jnp.where(groups.mask, logprobs.reshape(groups.mask.shape), 0.0)
    return jnp.sum(logprobs, axis=2) / jnp.sum(groups.mask, axis=2)
