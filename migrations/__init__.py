"""Alembic migrations, applied by `hookwright migrate` (core.storage.schema)."""
