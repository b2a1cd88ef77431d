"""The kinds of columns that the tables are made of."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ARRAY, Column, DateTime, ForeignKey, Integer, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import SQLModel

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
SQLModel.metadata.naming_convention = NAMING


def one_of(column: str, values: Iterable[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def id_() -> Any:
    return Column(Uuid, primary_key=True)


def uuid_(*, nullable: bool = False, of: str | None = None) -> Any:
    """A UUID; `of` names the table whose id it must be."""
    references = [ForeignKey(f"{of}.id")] if of else []
    return Column(Uuid, *references, nullable=nullable)


def time_(*, nullable: bool = False, now: bool = False) -> Any:
    return Column(DateTime(timezone=True), nullable=nullable, server_default=func.now() if now else None)


def now() -> datetime:
    return datetime.now(UTC)


def text_(*, nullable: bool = False, default: str | None = None) -> Any:
    return Column(Text, nullable=nullable, server_default=text(f"'{default}'") if default is not None else None)


def json_(*, nullable: bool = False) -> Any:
    return Column(JSONB(none_as_null=True), nullable=nullable, server_default=None if nullable else text("'{}'"))


def texts() -> Any:
    return Column(ARRAY(Text), nullable=False, server_default=text("'{}'"))


def integer(default: int, kind: Any = Integer) -> Any:
    return Column(kind, nullable=False, server_default=text(str(default)))
