"""A plan beside what the programs that it stands for really hold."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from small_model import SMALL, random_params

from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.params import Params, param_shardings
from persrm_jax.models.trainable import TrainableConfig, split
from persrm_jax.rl.losses import LossConfig
from persrm_jax.sampling import SamplingConfig
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.plan import (
    CPU_RUNTIME,
    Job,
    _lacking,
    device_bytes,
    estimate,
    kv_cache_bytes,
    measure,
)
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.sft import SftConfig
from persrm_jax.training.step import init_state

JOB = Job(
    model=SMALL,
    compute=ComputeConfig(),
    sft=SftConfig(steps=4, batch_size=64),
    rft=RftConfig(steps=4, prompts=16, group_size=4, sampling=SamplingConfig(max_new_tokens=16)),
    loss=LossConfig(kl_coef=0.1),
    trainable=TrainableConfig(),
    prompt_tokens=64,
    trace_tokens=32,
)


def placed(mesh: Mesh) -> Params:
    """The small model on a mesh."""
    return jax.device_put(random_params(SMALL), param_shardings(SMALL, mesh))


@pytest.mark.parametrize("shape", ["1x1", "4x2"])
@pytest.mark.parametrize(
    "trainable", [TrainableConfig(), TrainableConfig(lora_rank=4), TrainableConfig(freeze="embed")]
)
def test_weights_and_moments_are_those_of_the_run(shape: str, trainable: TrainableConfig) -> None:
    mesh = make_mesh(MeshShape.parse(shape))
    key = jax.random.key(0)
    trained, frozen = split(placed(mesh), SMALL, trainable, key, mesh)
    optimizer = make_optimizer(JOB.sft.optimizer, 4)
    state = init_state(trained, optimizer, key, mesh)

    def held(tree: Any) -> int:
        device = mesh.devices.flat[0]
        shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
        return sum(s.data.nbytes for s in shards if s.device == device)

    use = estimate("sft", replace(JOB, trainable=trainable), mesh)
    assert use.parameters == held((state.params, frozen))
    assert use.optimizer == held(state.opt_state)
    assert use.gradients == held(state.params)
    rft = estimate("rft", replace(JOB, trainable=trainable), mesh)
    whole = held(placed(mesh))
    assert rft.reference == (0 if trainable.lora_rank else whole)


@pytest.mark.parametrize("name", JOB.programs())
def test_every_program_compiles_on_a_mesh_and_splits_over_it(name: str) -> None:
    alone = measure(name, JOB, make_mesh(MeshShape(1, 1)))
    shared = measure(name, JOB, make_mesh(MeshShape(4, 2)))
    assert alone.is_compiled and alone.flops == shared.flops > 0
    ours = alone.activations - round(CPU_RUNTIME)
    theirs = shared.activations - round(CPU_RUNTIME / 8)
    assert 0 < theirs < 0.5 * ours, "rows are split four ways"
    guessed = estimate(name, JOB, make_mesh(MeshShape(1, 1))).activations
    assert 0.1 < guessed / ours < 10


@pytest.mark.parametrize("name", ["reference", "rft"])
def test_packed_rows_are_planned_for_at_their_most(name: str) -> None:
    """A row for each group; longer rows take more."""
    rft = replace(JOB.rft, mini_batches=2, accumulate=2)
    mesh = make_mesh(MeshShape(4, 1))
    short, long = (
        measure(name, replace(JOB, rft=replace(rft, pack_length=length)), mesh).activations
        - round(CPU_RUNTIME / 4)
        for length in (128, 512)
    )
    assert 0 < 2 * short < long


def test_more_parts_take_less() -> None:
    mesh = make_mesh(MeshShape(1, 1))
    whole = [measure(name, JOB, mesh).activations for name in ("sft", "rft", "reference")]
    sft, rft = replace(JOB.sft, accumulate=8), replace(JOB.rft, accumulate=8)
    parted = replace(JOB, sft=sft, rft=rft)
    parts = [measure(name, parted, mesh).activations for name in ("sft", "rft", "reference")]
    for one, other in zip(whole, parts, strict=True):
        assert other - CPU_RUNTIME < 0.5 * (one - CPU_RUNTIME)


def test_the_cache_by_hand() -> None:
    # 16 prompts of 64 positions, 64 completions of 16, 2 layers, 2 heads of 8, keys and values,
    # 4 bytes.
    slots = 16 * 64 + 64 * 16
    assert kv_cache_bytes(JOB, make_mesh(MeshShape(1, 1))) == slots * 2 * 2 * 8 * 2 * 4
    assert kv_cache_bytes(JOB, make_mesh(MeshShape(4, 2))) == slots * 2 * 2 * 8 * 2 * 4 // 8
    parts = replace(JOB, rft=replace(JOB.rft, rollout_parts=4))
    assert kv_cache_bytes(parts, make_mesh(MeshShape(1, 1))) == slots * 2 * 2 * 8 * 2


def test_without_a_reference_none_is_planned() -> None:
    alone = replace(JOB, loss=LossConfig(kl_coef=0.0))
    assert alone.programs() == ("sft", "rollout", "rft")
    assert estimate("rft", alone, make_mesh(MeshShape(1, 1))).reference == 0


def test_device_bytes_of_keys_and_parts() -> None:
    mesh = make_mesh(MeshShape(8, 1))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = {
        "x": jax.device_put(np.zeros((16, 3), np.int16), sharding),
        "key": jax.device_put(jax.random.key(0), jax.sharding.NamedSharding(mesh, jax.P())),
    }
    assert device_bytes(tree) == 2 * 3 * 2 + 8


def test_a_compilers_words_are_understood() -> None:
    temporaries = "the total memory required for HLO temporaries (169.25G) exceeds available HBM"
    assert _lacking(temporaries, 0) == int(169.25 * 2**30)
    assert _lacking("Used 20.00G of 15.75G hbm.", 2**30) == 19 * 2**30
    assert _lacking("INTERNAL: something else", 0) is None
