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


# What PostgreSQL adds to an error: "Failing row contains (…)", which is somebody's data. In a text, and in its repr.
_DETAIL = re.compile(
    r"(?:\n|\\n)[ |]*DETAIL:.*?(?=(?:\n|\\n)[ |]*(?:\[SQL|HINT:)|\n[ |]*\n|\Z)",
    re.DOTALL,
)


def _without_details(_logger: object, _name: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for name, value in line.items():
        if isinstance(value, str) and "DETAIL:" in value:
            line[name] = _DETAIL.sub("", value)
    return line
