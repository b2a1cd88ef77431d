"""The keys that seal secrets at rest, when nobody configured any."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

from cli.embedded.paths import make_data_dir, read_secret, write_secret_once

KEY_BYTES = 32


def secret_keys_file(data_dir: Path) -> Path:
    return data_dir.resolve() / "secret_keys"


def ensure_secret_keys(data_dir: Path) -> str:
    """The value for HOOKWRIGHT_SECRET_KEYS, made at the first call and the same ever after."""
    path = secret_keys_file(make_data_dir(data_dir))
    if not path.exists():
        write_secret_once(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii"))
    return read_secret(path)
