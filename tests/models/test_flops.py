import numpy as np
import pytest

from persrm_jax.models.config import SIZES, ModelConfig
from persrm_jax.models.flops import forward_flops, group_flops, matrix_params, train_flops

CFG = ModelConfig(
    vocab_size=10,
    num_layers=2,
    width=4,
    mlp_width=6,
    num_heads=2,
    num_kv_heads=1,
    head_width=3,
    max_positions=8,
    tie_embeddings=False,
)


def test_by_hand() -> None:
    # A layer: q 4*6, k and v 4*3 each, o 6*4, gate, up and down 4*6 each.
    assert matrix_params(CFG) == 2 * (24 + 12 + 12 + 24 + 72) + 10 * 4
    # Sequences of 5 and 2 tokens; attention: 4 L N H for each token and position.
    want = 2 * 328 * 7 + 4 * 2 * 2 * 3 * (25 + 4)
    assert forward_flops(CFG, np.array([5, 2])) == want
    assert forward_flops(CFG, np.array([5, 2]), scored=3.0) == want - 2 * 40 * 4
    assert train_flops(float(want)) == 3 * want
    assert train_flops(float(want), trained_share=0.25) == 2.25 * want


def test_a_group_by_hand() -> None:
    """A prompt of 5 and two completions of 2 and 3: the prompt once, and not scored."""
    want = 2 * (328 - 40) * 5 + 2 * 328 * 5 + 4 * 2 * 2 * 3 * (25 + 2 * 7 + 3 * 8)
    assert group_flops(CFG, np.array([5]), np.array([[2, 3]])) == want


def test_six_n_t_of_a_model_with_tied_embeddings() -> None:
    cfg = SIZES["Qwen/Qwen2.5-0.5B-Instruct"]
    assert train_flops(forward_flops(cfg, np.array([1]))) == pytest.approx(
        6 * cfg.num_params, rel=1e-3
    )


@pytest.mark.parametrize(("name", "billions"), [(n, n.split("-")[1]) for n in SIZES])
def test_published_sizes(name: str, billions: str) -> None:
    published = {"0.5B": 0.494, "1.5B": 1.54, "7B": 7.616, "72B": 72.7}
    published |= {"0.6B": 0.596, "8B": 8.19, "32B": 32.8}
    assert SIZES[name].num_params / 1e9 == pytest.approx(published[billions], rel=0.01)
