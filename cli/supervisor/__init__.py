"""Runs the platform's processes and keeps them running."""

from cli.supervisor.platform import run_platform
from cli.supervisor.supervisor import Supervisor

__all__ = ["Supervisor", "run_platform"]
