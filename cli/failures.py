"""How a failure ends the command: its message on standard error, an exit code, and no traceback.

Whatever is not listed here is a fault of ours and does get its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cli.output import say
from cli.service import StartError
from core.errors import HookwrightError
from core.settings import WrongSettings

CANT = 1
WRONG_USE = 2


@contextmanager
def told() -> Iterator[None]:
    """Turns what was foreseen into a message and `SystemExit`."""
    try:
        yield
    except WrongSettings as error:
        say(error.message)
        sys.exit(WRONG_USE)
    except HookwrightError as error:
        say(explain(error))
        sys.exit(CANT)
    except StartError as error:
        say(str(error))
        sys.exit(CANT)


def explain(error: HookwrightError) -> str:
    """The message and, a line each, the details that say where and what would be right."""
    lines = [error.message]
    for path, said in error.details.items():
        texts = said if isinstance(said, list) else [said]
        lines += [f"  {path}: {text}" for text in texts]
    return "\n".join(lines)
