"""The tables of who may do what, and of who did: users, their sessions, ways in, and the audit log."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Column, Index, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from core.storage.columns import id_, integer, json_, now, one_of, text_, time_, uuid_


class Role(StrEnum):
    """What a user may do; each may all that the one before may."""

    VIEWER = "viewer"  # see everything but secrets
    OPERATOR = "operator"  # replay, discard, pause, resume
    ADMIN = "admin"  # everything: subscriptions, secrets, keys, users, organizations


class User(SQLModel, table=True):
    """A person who signs in to the pages. Of the whole installation: partners have API keys."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint(one_of("role", Role), name="role"),
        CheckConstraint("email = lower(email) AND length(email) BETWEEN 3 AND 254", name="email"),
        CheckConstraint("(oidc_issuer IS NULL) = (oidc_subject IS NULL)", name="oidc"),
        UniqueConstraint("email"),
        UniqueConstraint("oidc_issuer", "oidc_subject"),
    )

    id: UUID = Field(sa_column=id_())
    email: str = Field(sa_column=text_())  # in lower case
    name: str = Field(default="", sa_column=text_(default=""))
    role: str = Field(sa_column=text_())
    # Argon2id in its own encoding (RFC 9106), which names its parameters; none: not chosen yet, or only by OIDC.
    password_hash: str | None = Field(default=None, sa_column=text_(nullable=True))
    oidc_issuer: str | None = Field(default=None, sa_column=text_(nullable=True))
    oidc_subject: str | None = Field(default=None, sa_column=text_(nullable=True))
    version: int = Field(default=1, sa_column=integer(1))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    updated_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    last_signed_in_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))
    disabled_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))  # may not sign in since


class UserSession(SQLModel, table=True):
    """A browser that is signed in. Its cookie holds a random token; a hash of it rests here. Ended: the row is gone."""

    __tablename__ = "user_sessions"
    __table_args__ = (UniqueConstraint("token_hash"), Index(None, "user_id", "id"), Index(None, "expires_at"))

    id: UUID = Field(sa_column=id_())
    user_id: UUID = Field(sa_column=uuid_(of="users"))
    token_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    seen_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    expires_at: datetime = Field(sa_column=time_())
    address: str | None = Field(default=None, sa_column=text_(nullable=True))
    user_agent: str | None = Field(default=None, sa_column=text_(nullable=True))


class SignInLink(SQLModel, table=True):
    """A link by which its holder chooses a password, once: to set up the installation, or invited. Used: gone."""

    __tablename__ = "sign_in_links"
    __table_args__ = (Index(None, "user_id"),)

    token_hash: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    user_id: UUID | None = Field(default=None, sa_column=uuid_(nullable=True, of="users"))  # none: the first admin
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    expires_at: datetime = Field(sa_column=time_())


class SignInFailure(SQLModel, table=True):
    """Failed sign-ins of a day, to an account or from an address. Not in Redis: it must hold when that is away."""

    __tablename__ = "sign_in_failures"
    __table_args__ = (Index(None, "first_at"),)

    subject: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))  # a keyed hash of the account or address
    count: int = Field(default=0, sa_column=integer(0))
    first_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    last_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    noted_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))  # in the audit log


class OidcSignIn(SQLModel, table=True):
    """A sign-in that went to the identity provider and has not come back. Used: gone."""

    __tablename__ = "oidc_sign_ins"
    __table_args__ = (Index(None, "expires_at"),)

    state_hash: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  # code verifier, nonce and where to go then
    expires_at: datetime = Field(sa_column=time_())


class AuditEntry(SQLModel, table=True):
    """One thing that somebody did. Only ever added to; a trigger refuses the rest. Written by `core.audit` alone."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index(None, "organization_id", "id"),
        Index(None, "resource", "id"),
        Index(None, "actor", "id"),
    )

    id: UUID = Field(sa_column=id_())  # the time is in it
    organization_id: UUID | None = Field(default=None, sa_column=uuid_(nullable=True))  # none: of the installation
    actor: str = Field(sa_column=text_())  # usr_…, key_…, "command line", "worker" or "anybody"
    actor_name: str = Field(default="", sa_column=text_(default=""))
    action: str = Field(sa_column=text_())  # noun and verb: subscription.created
    resource: str = Field(default="", sa_column=text_(default=""))  # the id of what it was done to
    before: dict[str, Any] | None = Field(default=None, sa_column=json_(nullable=True))  # what changed, as it was
    after: dict[str, Any] | None = Field(default=None, sa_column=json_(nullable=True))  # and as it is; secrets left out
    address: str | None = Field(default=None, sa_column=text_(nullable=True))  # where the request came from
    request_id: str | None = Field(default=None, sa_column=Column(Text))
