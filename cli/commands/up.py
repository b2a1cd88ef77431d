"""`hookwright up`: the whole platform as one command."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DEFAULT_HOST, DEFAULT_PORT, DataDir, Host, Port
from cli.output import give
from cli.supervisor.platform import DATABASE_URL, SECRET_KEYS, run_platform
from cli.supervisor.ports import base_url, free_port, reachable_host
from cli.welcome import welcome
from core.settings import Settings, load


def up(
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
) -> None:
    """Start everything: PostgreSQL and Valkey unless their URLs are set, the web process and the workers.

    Prints `ready http://HOST:PORT` once all of it serves. Ctrl-C stops it.
    """
    settings = judge(data_dir)
    port = free_port(host, port)
    background: set[asyncio.Task[None]] = set()

    env = children_env(settings, host, port, data_dir)
    public_url = env.get("HOOKWRIGHT_PUBLIC_URL", settings.public_url)

    def on_ready(url: str) -> None:
        give(f"ready {url}")
        background.add(asyncio.ensure_future(welcome(data_dir, public_url)))

    log_like_the_children(settings)
    code = asyncio.run(
        run_platform(
            host=host,
            port=port,
            data_dir=data_dir,
            workers=workers,
            settings_env=env,
            on_ready=on_ready,
        )
    )
    raise typer.Exit(code)


def judge(data_dir: Path) -> Settings:
    """Refuses wrong settings before anything starts; what will be embedded has stand-ins."""
    env = target.environment()
    own_keys = SECRET_KEYS in env
    # Keys for a shared database must be given: ones made here would be lost with this machine.
    stand_ins = [name for name in target.STAND_INS if name != SECRET_KEYS or DATABASE_URL not in env]
    for name in stand_ins:
        env.setdefault(name, target.STAND_INS[name])
    settings = load(env | {"HOOKWRIGHT_DATA_DIR": str(data_dir)})
    if own_keys:
        target.sealer(settings)
    return settings


def children_env(settings: Settings, host: str, port: int, data_dir: Path) -> dict[str, str]:
    """What the children can't know: where they are reached, and the folder that `--data-dir` named."""
    env = {"HOOKWRIGHT_DATA_DIR": str(data_dir.resolve())}
    if "public_url" not in settings.model_fields_set:
        env["HOOKWRIGHT_PUBLIC_URL"] = base_url(reachable_host(host), port)
    return env


def log_like_the_children(settings: Settings) -> None:
    """The supervisor's own lines are for people unless the settings ask for JSON."""
    if settings.log_format == "json":
        from core import logs

        logs.configure(settings.log_level, settings.log_format)
