from itertools import product

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from persrm_jax.sharding import (
    ACTIVATION_RULES,
    PARAM_RULES,
    MeshShape,
    batch_sharding,
    check_mesh,
    constrain,
    make_mesh,
    param_sharding,
    partition,
    replicated,
)


@pytest.mark.parametrize(
    ("text", "shape"), [("8x1", (8, 1)), ("2X4", (2, 4)), ("1x1", (1, 1)), ("16x04", (16, 4))]
)
def test_parse(text: str, shape: tuple[int, int]) -> None:
    mesh = MeshShape.parse(text)
    assert (mesh.data, mesh.model) == shape
    assert mesh.num_devices == shape[0] * shape[1]
    assert MeshShape.parse(str(mesh)) == mesh


@pytest.mark.parametrize(
    "text",
    ["", "8", "x", "8x", "x1", "8x1x1", "-8x1", "8x-1", "8 x 1", "axb", "1.5x2", "8*1", "²x1"],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="expected DATAxMODEL, such as 8x1"):
        MeshShape.parse(text)


@pytest.mark.parametrize("text", ["0x1", "8x0"])
def test_parse_refuses_empty_sides(text: str) -> None:
    with pytest.raises(ValueError, match=f"--mesh {text}: both sides must be at least 1"):
        MeshShape.parse(text)


@pytest.mark.parametrize("text", ["1x1", "8x1", "4x2", "2x4", "1x8"])
def test_make_mesh(text: str) -> None:
    shape = MeshShape.parse(text)
    mesh = make_mesh(shape)
    assert dict(mesh.shape) == {"data": shape.data, "model": shape.model}
    assert list(mesh.devices.flat) == jax.devices()[: shape.num_devices]


def test_a_mesh_of_more_devices_than_there_are_says_what_would_fit() -> None:
    with pytest.raises(ValueError, match="--mesh 100x1 needs 100 devices") as error:
        make_mesh(MeshShape(100, 1))
    assert "64x1 would fit" in str(error.value)


def test_check_mesh_accepts_what_divides() -> None:
    check_mesh(MeshShape(4, 2), 6, {"--batch": 8, "--eval-batch": 4})
    check_mesh(MeshShape(1, 1), 7, {"--batch": 5})


def test_check_mesh_says_which_model_sides_would_fit() -> None:
    with pytest.raises(ValueError) as error:
        check_mesh(MeshShape(2, 4), 9, {})
    assert str(error.value) == (
        "--mesh 2x4: the model has 9 query heads, which 4 does not divide; "
        "the second side can be 1, 3, 9"
    )


def test_check_mesh_says_which_batch_and_which_data_sides_would_fit() -> None:
    with pytest.raises(ValueError) as error:
        check_mesh(MeshShape(8, 1), 4, {"--good": 16, "--sft.batch-size": 12})
    assert str(error.value) == (
        "--mesh 8x1: --sft.batch-size is 12, which 8 does not divide; "
        "the first side can be 1, 2, 3, 4, 6, 12"
    )


def test_every_mesh_that_an_error_proposes_is_accepted() -> None:
    for heads, size in product((6, 9), (4, 10)):
        for data, model in product(range(1, 11), repeat=2):
            fits = heads % model == 0 and size % data == 0
            try:
                check_mesh(MeshShape(data, model), heads, {"--batch": size})
                assert fits
            except ValueError:
                assert not fits


def test_partition_follows_the_rules() -> None:
    mesh = make_mesh(MeshShape(4, 2))
    assert partition((16, 32), ("vocab", "vector"), PARAM_RULES, mesh) == P(("model", "data"), None)
    assert partition((6, 32), ("vocab", "vector"), PARAM_RULES, mesh) == P("model", None)
    assert partition(
        (3, 32, 4, 8), ("layers", "embed", "heads", "head_width"), PARAM_RULES, mesh
    ) == P(None, "data", "model", None)
    assert partition((8, 5, 32), ("batch", "length", "embed"), ACTIVATION_RULES, mesh) == P(
        "data", None, None
    )


def test_partition_replicates_a_dim_that_its_mesh_axis_does_not_divide() -> None:
    mesh = make_mesh(MeshShape(4, 2))
    axes = ("embed", "kv_heads", "head_width")
    assert partition((32, 3, 8), axes, PARAM_RULES, mesh) == P("data", None, None)
    assert partition((30, 2, 8), axes, PARAM_RULES, mesh) == P(None, "model", None)


def test_partition_refuses_an_unknown_axis_and_another_rank() -> None:
    mesh = make_mesh(MeshShape(1, 1))
    with pytest.raises(KeyError):
        partition((4,), ("width",), PARAM_RULES, mesh)
    with pytest.raises(ValueError):
        partition((4, 4), ("embed",), PARAM_RULES, mesh)


def test_arrays_are_split_as_said() -> None:
    mesh = make_mesh(MeshShape(4, 2))
    x = jnp.zeros((8, 6))
    for sharding, piece in (
        (param_sharding((8, 6), ("embed", "mlp"), mesh), (2, 3)),
        (batch_sharding(mesh), (2, 6)),
        (replicated(mesh), (8, 6)),
    ):
        assert jax.device_put(x, sharding).addressable_shards[0].data.shape == piece


def test_constrain_pins_a_layout_under_a_mesh_and_does_nothing_without() -> None:
    x = jnp.arange(32.0).reshape(8, 4)

    def pinned(x: jax.Array) -> jax.Array:
        return constrain(x, "batch", "vocab")

    assert constrain(x, "batch", "vocab") is x
    mesh = make_mesh(MeshShape(4, 2))
    with jax.set_mesh(mesh):
        out = jax.jit(pinned)(jax.device_put(x, replicated(mesh)))
    assert out.sharding.spec == P("data", "model")
    assert (out == x).all()
