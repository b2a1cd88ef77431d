"""How the reader of a message can call us: for commands that are to be copied and pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def our_command() -> str:
    """`hookwright` if the shell would find this installation under that name, else our Python and `-m cli`."""
    found = shutil.which("hookwright")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "hookwright"
    return f"{shlex.quote(_shortest(Path(sys.executable)))} -m cli"


def _shortest(path: Path) -> str:
    try:
        return os.fspath(path.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(path)
