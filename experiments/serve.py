"""A trained judge as an HTTP service, so that any trainer can call it as its reward.

    python -m experiments.serve --run runs/tiny
    curl -s localhost:8000/score -H 'Content-Type: application/json' \\
        -d '{"exemplars": ["..."], "candidates": ["...", "..."]}'

`GET /health` says when every program is compiled; the interface is at /openapi.json and /docs. A
bearer token is asked for if PERSRM_TOKEN is set or --token-file given. SIGTERM and Ctrl-C let what
was taken on be answered.
"""

import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from experiments.service import LimitConfig, make_app
from persrm_jax import cli
from persrm_jax.evaluation.batcher import BatchConfig, Batcher
from persrm_jax.evaluation.reward_model import Judge
from persrm_jax.evaluation.trained import use_config
from persrm_jax.sharding import MeshShape, make_mesh

TOKEN_VARIABLE = "PERSRM_TOKEN"
MAX_CONNECTIONS = 2048


@dataclass(frozen=True)
class ServeConfig:
    """What to serve, and where."""

    run: Path
    """Folder of a run, or of a saved or Hugging Face model."""
    stage: str | None = None
    """Whose model of the run; that of RFT, or of SFT where there is no other."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: every one of the machine's."""
    port: int = 8000
    """Port to listen at; 0: a free one."""
    token_file: Path | None = None
    """File with the token that clients must bear; else that of PERSRM_TOKEN, if it is set."""
    batch_size: int | None = None
    """Questions that are answered at a time; as many as in the run's evaluation where none is
    given."""
    max_prompt_tokens: int | None = None
    """Longest prompt; as in the run where none is given. A shorter one means fewer programs to
    compile before the service is ready."""
    share_exemplars: bool = False
    """Read the exemplars of a request that fills a batch once. Saves most of its time where they
    are long; its programs are compiled when they are first needed, while others wait."""
    limit: LimitConfig = field(default_factory=LimitConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    mesh: cli.Mesh = MeshShape(1, 1)
    """Devices along data x model."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: must be from 0 to 65535")


def load_judge(cfg: ServeConfig) -> Judge:
    """The judge to serve."""
    use = replace(use_config(cfg.run), share_exemplars=cfg.share_exemplars)
    if cfg.batch_size is not None:
        use = replace(use, batch_size=cfg.batch_size)
    if cfg.max_prompt_tokens is not None:
        use = replace(use, prompt=replace(use.prompt, max_tokens=cfg.max_prompt_tokens))
    judge = Judge.load(cfg.run, mesh=make_mesh(cfg.mesh), stage=cfg.stage, cfg=use)
    largest = judge.num_questions(cfg.limit.candidates, cfg.limit.n)
    if largest > cfg.batch.max_waiting:
        raise ValueError(
            f"--batch.max-waiting {cfg.batch.max_waiting}: a request with --limit.candidates "
            f"{cfg.limit.candidates} and --limit.n {cfg.limit.n} takes {largest} questions"
        )
    return judge


def read_token(path: Path | None) -> str | None:
    """The token that clients must bear; None without one.

    Raises:
        ValueError: a file that cannot be read, or a token that no header can carry.
    """
    source, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if path is not None:
        try:
            source, token = f"--token-file {path}", path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--token-file {path}: cannot be read ({error})") from None
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ValueError(f"{source}: holds no token; expected one line of ASCII characters")
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
        ValueError: it is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(ServeConfig, "python -m experiments.serve", args)
    token = read_token(cfg.token_file)
    judge = load_judge(cfg)
    door = listen(cfg.host, cfg.port)
    if token is None and not is_loopback(cfg.host):
        print(f"warning: whoever reaches {cfg.host} can use the service; give --token-file")

    def stop_serving() -> None:
        server.should_exit = True

    batcher = Batcher(judge, cfg.batch, max_samples=cfg.limit.n, on_failure=stop_serving)
    app = make_app(batcher, cfg.limit, model=str(cfg.run), token=token)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(cfg.limit.timeout_s) + 1,
        )
    )
    # Uvicorn stops on these signals and then raises them again: the end it came to is a good one.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    host, port = door.getsockname()[:2]
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    batcher.start()
    try:
        server.run(sockets=[door])
    finally:
        batcher.stop()
    if batcher.failure is not None:
        raise batcher.failure
    print("stopped: every request that was taken on has been answered", flush=True)


if __name__ == "__main__":
    cli.run_main(main)
