"""`--writer`: who writes what, made when it is needed."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jax.sharding import Mesh

from experiments.presets import RunConfig
from persrm_jax.data.answers import Answers
from persrm_jax.data.local_writer import make_local_writer
from persrm_jax.data.minor import write_minor
from persrm_jax.data.openai_writer import OpenAIWriter
from persrm_jax.data.writers import NamedWriter
from persrm_jax.models.load import FROM_SCRATCH, load_model, load_pretrained, model_folder
from persrm_jax.types import WRITTEN, NegativeType

NAMES = ("rules", "local", "openai")


def parse_writers(spec: str, negatives: tuple[NegativeType, ...]) -> dict[NegativeType, str]:
    """Each written kind's writer, from one name for all or KIND=NAME,KIND=NAME.

    Raises:
        ValueError: an unknown kind or writer, or a kind that nobody or the rules cannot write.
    """
    given: dict[str, str] = {}
    for part in spec.split(","):
        kind, equals, name = part.strip().rpartition("=")
        if name not in NAMES:
            raise ValueError(f"--writer {spec}: {name!r} is none of {', '.join(NAMES)}")
        if equals and kind not in WRITTEN:
            raise ValueError(f"--writer {spec}: {kind!r} is none of {', '.join(WRITTEN)}")
        given[kind] = name
    found = {}
    for kind in WRITTEN:
        if kind in negatives:
            name = given.get(kind) or given.get("", "")
            if not name or (name == "rules" and kind != "minor"):
                raise ValueError(
                    f"--writer {spec}: nobody writes {kind!r}; name a model for it, such as "
                    f"{kind}=local or {kind}=openai (rules write minor alone)"
                )
            found[kind] = name
    return found


class Writers:
    """The run's writers."""

    def __init__(self, cfg: RunConfig, mesh: Mesh) -> None:
        """Makes none yet.

        Raises:
            ValueError: as `parse_writers`.
        """
        self.cfg, self.mesh = cfg, mesh
        self.kinds = parse_writers(cfg.writer, cfg.pairs.all_kinds)
        self.by_name = cache(self._make)

    @property
    def names(self) -> set[str]:
        """Those that the run needs."""
        return {*self.kinds.values(), self.cfg.teacher.writer}

    def cost(self, answers: Answers) -> float | None:
        """What the endpoint's answers have cost; None where none is asked."""
        if "openai" not in self.names:
            return None
        label = self.by_name("openai").label
        spent = (answers.tokens[label, what] for what in ("prompt", "completion"))
        return self.cfg.openai.cost(*spent)

    def check(self) -> None:
        """Makes all that the run needs.

        Raises:
            ValueError: one that cannot be had.
        """
        for name in sorted(self.names & set(NAMES)):
            self.by_name(name)

    def of_kinds(self) -> Mapping[NegativeType, NamedWriter]:
        """For each written kind its writer."""
        return {kind: self.by_name(name) for kind, name in self.kinds.items()}

    def _make(self, name: str) -> NamedWriter:
        cfg = self.cfg
        if name == "rules":
            return NamedWriter("rules", write_minor)
        if name == "openai":
            o = cfg.openai
            settings = f"{o.base_url} {o.temperature} {o.max_tokens}"
            return NamedWriter(f"openai:{o.model}", OpenAIWriter(o), settings)
        if cfg.init is None and cfg.model == FROM_SCRATCH:
            raise ValueError(
                "--writer local: a model from scratch cannot write yet; give --model or --init"
            )
        dtype = cfg.compute.param_dtype
        if cfg.init is not None:
            model = load_model(model_folder(cfg.init), self.mesh, dtype)
        else:
            model = load_pretrained(cfg.model, self.mesh, dtype)
        write = make_local_writer(model, cfg.local, compute=cfg.compute, mesh=self.mesh)
        source = str(cfg.init or cfg.model)
        settings = f"{source} {cfg.local.sampling} {cfg.compute}"
        return NamedWriter(f"local:{Path(source).name}", write, settings)
