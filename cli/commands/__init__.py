"""A module per command or group of commands.

They import what is heavy (SQLAlchemy, httpx, the application) when called: `hookwright --help` and the supervisor
should not wait for it, nor keep it in memory.
"""
