"""Alembic migrations, applied by `hookwright migrate` (core.schema)."""
