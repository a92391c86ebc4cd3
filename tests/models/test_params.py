from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, PartitionSpec

from persrm_jax.models.config import ModelConfig
from persrm_jax.models.params import Params, abstract_params, init_params, param_specs
from persrm_jax.sharding import MeshShape, make_mesh

CFG = ModelConfig(
    vocab_size=320,
    num_layers=3,
    width=64,
    mlp_width=96,
    num_heads=8,
    num_kv_heads=2,
    head_width=16,
    max_positions=64,
    qkv_bias=True,
    qk_norm=True,
    tie_embeddings=False,
)


@pytest.fixture(scope="module")
def params(mesh: Mesh) -> Params:
    return init_params(CFG, jax.random.key(0), mesh)


def flatten(params: Params) -> dict[str, jax.Array]:
    return {"/".join(path): leaf for path, leaf in traverse_util.flatten_dict(params).items()}


def test_num_params_counted_by_hand(params: Params) -> None:
    layer = (
        64 * (8 + 2 + 2) * 16  # q, k, v
        + (8 + 2 + 2) * 16  # their biases
        + 8 * 16 * 64  # o
        + 3 * 64 * 96  # gate, up, down
        + 2 * 64  # norms
        + 2 * 16  # norms of q and k
    )
    assert CFG.num_params == 3 * layer + 2 * 320 * 64 + 64
    assert replace(CFG, tie_embeddings=True).num_params == CFG.num_params - 320 * 64
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == CFG.num_params


def test_optional_biases() -> None:
    plain = {path for path, _ in param_specs(CFG)}
    biased = {path for path, _ in param_specs(replace(CFG, out_bias=True, mlp_bias=True))}
    added = {path[1] for path in biased - plain}
    assert plain < biased and added == {"o", "gate", "up", "down"}


def test_init_statistics(params: Params) -> None:
    want = {
        "embed/weight": 0.02,
        "head/weight": 0.02,
        "layers/q/kernel": 64**-0.5,
        "layers/k/kernel": 64**-0.5,
        "layers/v/kernel": 64**-0.5,
        "layers/o/kernel": (8 * 16) ** -0.5,
        "layers/gate/kernel": 64**-0.5,
        "layers/up/kernel": 64**-0.5,
        "layers/down/kernel": 96**-0.5,
    }
    leaves = flatten(params)
    for name, std in want.items():
        x = np.asarray(leaves.pop(name))
        assert abs(x.mean()) < 5 * std / x.size**0.5, name
        # The standard error of a normal's standard deviation is std / sqrt(2 n).
        assert abs(x.std() - std) < 5 * std / (2 * x.size) ** 0.5, name
    for name, x in leaves.items():
        constant = 0.0 if name.endswith("bias") else 1.0
        np.testing.assert_array_equal(x, np.full(x.shape, constant), err_msg=name)


def test_no_two_parameters_are_the_same(params: Params) -> None:
    leaves = flatten(params)
    k, v = np.asarray(leaves["layers/k/kernel"]), np.asarray(leaves["layers/v/kernel"])
    layers = [*k, *v]
    for i, one in enumerate(layers):
        for other in layers[:i]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.15
    assert not np.array_equal(leaves["embed/weight"], leaves["head/weight"])


def test_the_same_key_gives_the_same_parameters_on_every_mesh(params: Params) -> None:
    elsewhere = init_params(CFG, jax.random.key(0), make_mesh(MeshShape(8, 1)))
    assert len(elsewhere["embed"]["weight"].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, elsewhere, params)


def test_dtype(mesh: Mesh) -> None:
    made = jax.eval_shape(lambda key: init_params(CFG, key, mesh, "bfloat16"), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("bfloat16")}


def test_shardings_are_those_of_the_table() -> None:
    mesh = make_mesh(MeshShape(4, 2))
    specs = {name: leaf.sharding.spec for name, leaf in flatten(abstract_params(CFG, mesh)).items()}
    P = PartitionSpec
    want = {
        "embed/weight": P(("model", "data"), None),
        "head/weight": P(("model", "data"), None),
        "final_norm/scale": P(None),
        "layers/attn_norm/scale": P(None, None),
        "layers/mlp_norm/scale": P(None, None),
        "layers/q_norm/scale": P(None, None),
        "layers/k_norm/scale": P(None, None),
        "layers/q/kernel": P(None, "data", "model", None),
        "layers/k/kernel": P(None, "data", "model", None),
        "layers/v/kernel": P(None, "data", "model", None),
        "layers/q/bias": P(None, "model", None),
        "layers/k/bias": P(None, "model", None),
        "layers/v/bias": P(None, "model", None),
        "layers/o/kernel": P(None, "model", None, "data"),
        "layers/gate/kernel": P(None, "data", "model"),
        "layers/up/kernel": P(None, "data", "model"),
        "layers/down/kernel": P(None, "model", "data"),
    }
    assert specs == want


def test_key_value_heads_that_the_mesh_does_not_divide_are_replicated() -> None:
    leaves = flatten(abstract_params(CFG, make_mesh(MeshShape(2, 4))))  # 2 heads on 4 devices
    P = PartitionSpec
    assert leaves["layers/k/kernel"].sharding.spec == P(None, "data", None, None)
    assert leaves["layers/v/bias"].sharding.spec == P(None, None, None)
    assert leaves["layers/q/kernel"].sharding.spec == P(None, "data", "model", None)


def test_parameters_are_made_where_they_live_and_differ_by_key(params: Params) -> None:
    mesh = make_mesh(MeshShape(2, 4))
    found, want = init_params(CFG, jax.random.key(1), mesh), abstract_params(CFG, mesh)
    jax.tree.map(lambda a, b: None if a.sharding == b.sharding else pytest.fail(), found, want)
    assert found["embed"]["weight"].addressable_shards[0].data.shape == (40, 64)
    assert not np.array_equal(found["embed"]["weight"], params["embed"]["weight"])
