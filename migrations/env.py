"""Runs the migrations over the connection that core.storage.schema hands in."""

from alembic import context
from sqlmodel import SQLModel

import core.access.models
import core.models  # noqa: F401 - fills the metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
