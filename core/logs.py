"""Log lines: for people or for machines, on standard error."""

from __future__ import annotations

import logging
import re
import sys

import structlog

# Libraries that would log every request or job.
_QUIET = ("arq", "httpx", "alembic", "asyncio")


def configure(level: str, log_format: str) -> None:
    """Sets up structlog and the standard library's logging alike. `log_format`: "text" or "json"."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _forget_details,
        structlog.processors.format_exc_info,
        _without_details,
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


# What PostgreSQL adds to an error: "Failing row contains (…)", which is somebody's data, and nobody can tell where that
# ends: so the rest of the text goes too. In a text, and in its repr.
_DETAIL = re.compile(r"(?:\n|\\n)[ |]*DETAIL:.*", re.DOTALL)


def _forget_details(_logger: object, _name: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Empties them where the exception is still at hand, so that what comes after them is kept."""
    given = line.get("exc_info")
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else sys.exception()
    if given:
        _forget_in(error, set())
    return line


def _forget_in(error: BaseException | None, seen: set[int]) -> None:
    """In `error` and what it was raised from or during. What wraps it may have its text already: that is cut."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    if type(error).__module__.startswith("asyncpg.") and hasattr(error, "detail"):
        error.detail = None
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        _forget_in(other, seen)


def _without_details(_logger: object, _name: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for name, value in line.items():
        if isinstance(value, str) and "DETAIL:" in value:
            line[name] = _DETAIL.sub("", value)
    return line
