"""What a run's programs will take on a mesh, told before it starts: each is compiled ahead of time
from shapes alone, for devices that need not be there."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from kernels.dispatch import QWEN_CHUNK
from persrm_jax.data.batches import bucketed
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.flops import forward_flops, train_flops
from persrm_jax.models.params import Params, abstract_params
from persrm_jax.models.trainable import TrainableConfig, abstract_trained, join, trained_share
from persrm_jax.rl.losses import LossConfig
from persrm_jax.sampling import Ending
from persrm_jax.sharding import batch_sharding
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.rft_config import RftConfig, needs_reference
from persrm_jax.training.rft_metrics import rollout_flops
from persrm_jax.training.rft_programs import RftBatch, make_rft_programs
from persrm_jax.training.sft import SftConfig, make_sft_program
from persrm_jax.training.step import TrainState, abstract_state
from persrm_jax.types import Batch, Groups, PackedRows

CPU_RUNTIME = 0.4 * 2**30
"""Bytes that the compiler and the runtime of a CPU hold beside a program's own, whatever its size
(`benchmarks.step_memory`)."""
AnyMesh = Mesh | AbstractMesh
PROGRAMS = ("sft", "rollout", "reference", "rft")


@dataclass(frozen=True)
class Job:
    """What decides the sizes of a run's programs."""

    model: ModelConfig
    compute: ComputeConfig
    sft: SftConfig
    rft: RftConfig
    loss: LossConfig
    trainable: TrainableConfig
    prompt_tokens: int
    """Longest prompt."""
    trace_tokens: int
    """Longest trace, its prompt left out."""

    @property
    def sft_length(self) -> int:
        """Positions of an SFT row."""
        return self.sft.pack_length or bucketed(self.prompt_tokens + self.trace_tokens)

    @property
    def sft_rows(self) -> int:
        """Rows of an SFT step. Traces of a group count whole: what they share is known only when
        they are made."""
        return self.sft.batch_size * self.sft.group_size

    @property
    def num_completions(self) -> int:
        return self.rft.prompts * self.rft.group_size

    @property
    def has_reference(self) -> bool:
        """Whether a KL divergence needs one."""
        return needs_reference(self.rft, self.loss)

    @property
    def keeps_reference(self) -> bool:
        """Whether the reference's weights are a copy, not the frozen base of adapters."""
        return self.has_reference and not self.trainable.lora_rank

    def programs(self) -> tuple[str, ...]:
        """Those that a run has."""
        scores = self.has_reference or self.rft.updates_a_step > 1
        return tuple(p for p in PROGRAMS if p != "reference" or scores)


@dataclass(frozen=True)
class Usage:
    """What one program takes. Memory is bytes a device, work floating-point operations a step of
    all devices."""

    parameters: int
    """Trained and frozen."""
    optimizer: int
    reference: int
    """The KL reference's own copy of the weights."""
    kv_cache: int
    gradients: int
    activations: int
    """Everything else that a program holds for a while."""
    flops: float
    is_compiled: bool = True
    """Or an estimate by arithmetic."""

    @property
    def peak(self) -> int:
        return (
            self.parameters
            + self.optimizer
            + self.reference
            + self.kv_cache
            + self.gradients
            + self.activations
        )


def device_bytes(tree: Any) -> int:
    """Bytes of a tree on the device that holds most of it: each array's shard."""

    def one(x: Any) -> int:
        itemsize = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
        return int(np.prod(x.sharding.shard_shape(x.shape))) * itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def program(name: str, job: Job, mesh: AnyMesh) -> tuple[Any, tuple[Any, ...], TrainState, Params]:
    """(jitted function, its abstract arguments, the train state, the frozen parameters)."""
    trained = abstract_trained(job.model, job.trainable, mesh, job.compute.param_dtype)
    whole = abstract_params(job.model, mesh, job.compute.param_dtype)
    frozen = whole if job.trainable.lora_rank else _without(whole, trained)
    optimizer = make_optimizer((job.sft if name == "sft" else job.rft).optimizer, 1)
    state = abstract_state(trained, optimizer, mesh)
    if name == "sft":
        train = make_sft_program(job.model, job.compute, job.sft, job.trainable, job.loss)
        return (
            train,
            (state, _rows(job.sft_rows, job.sft_length, mesh), frozen),
            state,
            frozen,
        )
    programs = make_rft_programs(
        job.model,
        job.compute,
        job.rft,
        job.loss,
        ending=Ending((1,), 0),
        trainable=job.trainable,
    )
    P, G, T = job.rft.prompts, job.rft.group_size, job.rft.sampling.max_new_tokens
    if name == "rft":
        P //= job.rft.mini_batches
    if name == "rollout":
        P //= job.rft.rollout_parts
    S = bucketed(job.prompt_tokens)
    groups = Groups(
        _array(mesh, "int32", P, S),
        _array(mesh, "bool", P, S),
        _array(mesh, "int32", P, G, T),
        _array(mesh, "bool", P, G, T),
        _packed(name, job, mesh, P) if job.rft.pack_length else None,
    )
    match name:
        case "rollout":
            model = jax.eval_shape(lambda t, f: join(t, f, job.trainable), trained, frozen)
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), P * G))
            keys = _array(mesh, keys.dtype, P * G)
            args = (_placed(model, trained, frozen), *groups[:2], keys)
            return programs.generate, args, state, frozen
        case "reference":
            return programs.score, (whole, groups), state, frozen
        case "rft":
            logprobs = _array(mesh, "float32", P, G, T)
            batch = RftBatch(
                groups,
                _array(mesh, "bool", P),
                _array(mesh, "bool", P, G, T),
                _array(mesh, "float32", P, G),
                logprobs,
                logprobs if job.has_reference else None,
                logprobs if job.rft.updates_a_step > 1 else None,
            )
            return programs.train, (state, batch, frozen), state, frozen
    raise AssertionError(name)


def _packed(name: str, job: Job, mesh: AnyMesh, num_prompts: int) -> PackedRows:
    """The most rows that packing may take: one for each group."""
    G, T = job.rft.group_size, job.rft.sampling.max_new_tokens
    num_parts = job.rft.accumulate if name == "rft" else job.rft.num_parts
    num_blocks = mesh.shape["data"] * num_parts
    shape = (num_blocks, num_prompts // num_blocks, job.rft.pack_length)
    tokens, positions, group_ids, member_ids = (_array(mesh, "int32", *shape) for _ in range(4))
    sources = _array(mesh, "int32", num_prompts, G, T)
    return PackedRows(tokens, positions, group_ids, member_ids, sources)


def _rows(num_rows: int, length: int, mesh: AnyMesh) -> Batch:
    return Batch(*(_array(mesh, d, num_rows, length) for d in ("int32", "int32", "int32", "bool")))


def _array(mesh: AnyMesh, dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))


def _without(tree: Params, taken: Params) -> Params:
    """The leaves of a nested dict that another does not have."""
    rest = {}
    for name, value in tree.items():
        if name not in taken:
            rest[name] = value
        elif isinstance(value, dict) and (left := _without(value, taken[name])):
            rest[name] = left
    return rest


def _placed(tree: Params, *sources: Params) -> Params:
    """A joined tree's shapes with the shardings that its leaves have in `sources`."""
    places: dict[Any, Any] = {}
    for source in sources:
        places |= {path: x.sharding for path, x in jax.tree.leaves_with_path(source)}
    return jax.tree.map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[path]), tree
    )


def kv_cache_bytes(job: Job, mesh: AnyMesh) -> int:
    """Keys and values of the prompts and completions that decode at once, a device's share."""
    model, shape = job.model, mesh.shape
    prompts = job.rft.prompts * bucketed(job.prompt_tokens)
    slots = prompts + job.num_completions * job.rft.sampling.max_new_tokens
    slots //= job.rft.rollout_parts
    heads = model.num_kv_heads
    heads = heads // shape["model"] if heads % shape["model"] == 0 else heads
    itemsize = jax.numpy.dtype(job.compute.dtype).itemsize
    per_layer = slots // shape["data"] * heads * model.head_width * itemsize
    return 2 * model.num_layers * per_layer


def program_flops(name: str, job: Job, share: float) -> float:
    """Model arithmetic of one run of a program, every row of full length."""
    if name == "sft":
        lengths = np.full(job.sft_rows, job.sft_length)
        return train_flops(forward_flops(job.model, lengths), share)
    prompts = np.full(job.rft.prompts, bucketed(job.prompt_tokens))
    shape = (job.rft.prompts, job.rft.group_size)
    new = np.full(shape, job.rft.sampling.max_new_tokens)
    shared = name == "rollout" or job.rft.shared_prefix
    forward = rollout_flops(job.model, prompts, new, shared=shared)
    return train_flops(forward, share) if name == "rft" else forward


def measure(name: str, job: Job, mesh: Mesh) -> Usage:
    """Compiles a program for the devices of `mesh`, and reads its memory off.

    Raises:
        JaxRuntimeError: the compiler's, but for the one that says that memory runs out.
    """
    function, args, state, frozen = program(name, job, mesh)
    with jax.set_mesh(mesh):
        lowered = function.lower(*args)
    arguments = device_bytes(args)
    try:
        stats = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if (temporary := _lacking(str(error), arguments)) is None:
            raise
    else:
        # Donated arguments come back as results: counted once.
        results = stats.output_size_in_bytes - stats.alias_size_in_bytes
        temporary = stats.temp_size_in_bytes + results + stats.generated_code_size_in_bytes
    if mesh.devices.flat[0].platform == "cpu":
        temporary += round(CPU_RUNTIME / mesh.size)
    batch = arguments - device_bytes((state.params, frozen))
    if name in ("sft", "rft"):
        batch -= device_bytes(state.opt_state)
    return usage(name, job, mesh, temporary + max(batch, 0), state, frozen)


def _lacking(message: str, arguments: int) -> int | None:
    """Temporary bytes that a program would have needed, from the words of a TPU's compiler."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if found := re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds", message):
        return int(float(found[1]) * units[found[2]])
    if found := re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message):
        return max(int(float(found[1]) * units[found[2]]) - arguments, 0)
    return None


def usage(
    name: str,
    job: Job,
    mesh: AnyMesh,
    temporary: int,
    state: TrainState,
    frozen: Params,
    *,
    is_compiled: bool = True,
) -> Usage:
    """`temporary` bytes told apart, beside what stays in memory while the program runs."""
    trains = name in ("sft", "rft")
    cache = kv_cache_bytes(job, mesh) if name == "rollout" else 0
    gradients = device_bytes(state.params) if trains else 0
    reference = 0
    if name != "sft" and job.keeps_reference:
        reference = device_bytes(abstract_params(job.model, mesh, job.compute.param_dtype))
    return Usage(
        parameters=device_bytes((state.params, frozen)),
        optimizer=device_bytes(state.opt_state),
        reference=reference,
        kv_cache=min(cache, temporary),
        gradients=min(gradients, temporary),
        activations=max(temporary - cache - gradients, 0),
        flops=program_flops(name, job, trained_share(state.params, frozen)),
        is_compiled=is_compiled,
    )


def estimate(name: str, job: Job, mesh: AnyMesh) -> Usage:
    """The same by arithmetic, for a chip whose compiler is not installed: weights and caches are
    exact, activations those that a layer's operations hold."""
    _, _, state, frozen = program(name, job, mesh)
    temporary = _estimated_activations(name, job, mesh)
    if name in ("sft", "rft"):
        temporary += device_bytes(state.params)
    if name == "rollout":
        temporary += kv_cache_bytes(job, mesh)
    return usage(name, job, mesh, temporary, state, frozen, is_compiled=False)


def _estimated_activations(name: str, job: Job, mesh: AnyMesh) -> int:
    model, data, parts = job.model, mesh.shape["data"], mesh.shape["model"]
    D, F, H, V = model.width, model.mlp_width, model.head_width, model.vocab_size
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * H
    S, T, G = bucketed(job.prompt_tokens), job.rft.sampling.max_new_tokens, job.rft.group_size
    if name == "sft":
        rows, length = job.sft_rows / job.sft.accumulate, job.sft_length
        longest, scored, square = length, length, length**2
    elif name == "rollout":
        rows = job.rft.prompts / job.rft.rollout_parts
        length, longest, scored, square = S, S, 1, S**2
    else:
        rows, longest, scored = job.rft.prompts / job.rft.accumulate, S + T, G * T
        copies = 1 if job.rft.shared_prefix else G
        length, square = copies * S + G * T, copies * S**2 + G * T * (S + T)
        if pack := job.rft.pack_length:  # a row for each group, at most
            length, longest, square = pack, pack, pack**2
    itemsize = jax.numpy.dtype(job.compute.dtype).itemsize
    tokens = rows * length / data
    stream = tokens * D * itemsize
    layer = 5 * stream + tokens * itemsize * (heads + 4 * F) / parts
    if longest <= 2048:  # the square of attention
        layer += rows / data * model.num_heads / parts * square * (4 + itemsize)
    weights = 2 * itemsize * (model.num_params - V * D) / model.num_layers / parts
    logits = 3 * 4 * min(rows * scored * V / data, QWEN_CHUNK) + V * D * itemsize / parts
    saved = {"none": model.num_layers * layer, "full": model.num_layers * stream}
    kept = saved.get(job.compute.remat, model.num_layers * layer * 0.6)
    return round((kept if name in ("sft", "rft") else 0) + layer + weights + logits)
