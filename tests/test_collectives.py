"""What devices send each other in a training step, read from the compiled program.

On a CPU, ZeRO compiles to all-gather and all-reduce; `make aot` counts what a TPU's compiler makes.
"""

from dataclasses import replace

import jax
import pytest
from small_model import SMALL

from benchmarks.collectives import Collective, collectives
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.params import param_specs
from persrm_jax.models.trainable import TrainableConfig, adapter_specs
from persrm_jax.rl.losses import LossConfig
from persrm_jax.sampling import SamplingConfig
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.plan import Job, program
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.sft import SftConfig

# Sizes that no parameter has, so that a shape tells where it comes from.
JOB = Job(
    model=SMALL,
    compute=ComputeConfig(),
    sft=SftConfig(steps=2, batch_size=48),
    rft=RftConfig(steps=2, prompts=48, group_size=2, sampling=SamplingConfig(max_new_tokens=21)),
    loss=LossConfig(kl_coef=0.1),
    trainable=TrainableConfig(),
    prompt_tokens=70,
    trace_tokens=26,
)


def compiled(name: str, job: Job, mesh: str) -> list[Collective]:
    devices = make_mesh(MeshShape.parse(mesh))
    function, args, _, _ = program(name, job, devices)
    with jax.set_mesh(devices):
        return collectives(function.lower(*args).compile().as_text())


def sizes(found: list[Collective], kind: str) -> set[tuple[int, ...]]:
    """Shapes of the results, ones left out."""
    return {tuple(n for n in s if n > 1) for c in found if c.kind == kind for s in c.shapes}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["sft", "rft"])
@pytest.mark.parametrize("lora", [0, 4])
def test_a_step_moves_weights_and_nothing_of_the_batch(
    name: str, accumulate: int, lora: int
) -> None:
    job = replace(
        JOB,
        sft=replace(JOB.sft, accumulate=accumulate),
        rft=replace(JOB.rft, accumulate=accumulate),
        trainable=TrainableConfig(lora_rank=lora),
    )
    found = compiled(name, job, "8x1")
    assert not sizes(found, "all-to-all") and not sizes(found, "collective-permute")
    gathered = sizes(found, "all-gather")
    assert gathered, "FSDP gathers weights"
    specs = param_specs(SMALL) + (adapter_specs(SMALL, job.trainable) if lora else [])
    weights = {tuple(n for n in spec.shape if n > 1) for _, spec in specs}
    weights |= {shape[1:] for shape in weights}  # one layer of a stack
    counts = {_count(shape) for shape in weights}
    # A gather may flatten or turn a weight, but not change how much it is.
    assert {shape for shape in gathered if _count(shape) not in counts} <= set()
    batch = {48, 24, 96, 91, 117, 138, 70, 21, 42, 12, 6, 3}
    assert not any(batch & set(shape) for shape in gathered)


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product


def test_sampling_moves_no_cache() -> None:
    found = compiled("rollout", replace(JOB, rft=replace(JOB.rft, prompts=24)), "8x1")
    # A decode step may exchange the vectors of its 48 tokens.
    assert all(_count(shape) <= 48 * SMALL.width for shape in sizes(found, "all-to-all"))
    # Prompts are padded to 96, and the cache has room for 21 more.
    assert not any({96, 21, 117} & set(shape) for c in found for shape in c.shapes)


def test_the_text_of_a_compiler_is_read() -> None:
    text = """
%all-reduce-scatter.1 (input: f32[16,4]) -> f32[2,4] {
      %r = f32[16,4]{1,0} all-reduce(%input), to_apply=%sum
}
ENTRY %main (x: f32[2,4]) -> f32[] {
      %a = f32[16,4]{1,0} all-gather(f32[2,4] %x), dimensions={0}
      %b = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(bf16[8,4] %y), dimensions={0}
      %c = bf16[64,4]{1,0} all-gather-done((bf16[8,4], bf16[64,4]) %b)
      ROOT %d = f32[] all-reduce(f32[] %z), to_apply=%sum
      %e = u32[2]{0} add(u32[2] %p, u32[2] %q), metadata={op_name="all-gather"}
    """
    found = collectives(text)
    kinds = ["reduce-scatter", "all-gather", "all-gather", "all-reduce"]
    assert [c.kind for c in found] == kinds
    assert found[2].shapes == ((8, 4), (64, 4)) and found[3].shapes == ((),)
