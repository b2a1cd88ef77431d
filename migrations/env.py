"""Runs the migrations over the connection that core.schema hands in."""

from alembic import context
from sqlmodel import SQLModel

import core.models
import core.models_access  # noqa: F401 - fills the metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
