"""Encryption at rest of signing secrets, and keyed hashes of API keys.

A sealed blob is AES-256-GCM (NIST SP 800-38D), in bytes:

    0        1            5             17
    ┌────────┬────────────┬─────────────┬──────────────────────┐
    │ 0x01   │ key id (4) │ nonce (12)  │ ciphertext, tag (16) │
    └────────┴────────────┴─────────────┴──────────────────────┘
    └─ authenticated with the context ─┘

The key id is the first 4 bytes of SHA-256(b"hookwright key id" + key): it says which master key to take and
nothing about the key. The context, such as `subscription_secret:<uuid>`, is authenticated but not stored: a
blob that was copied to another row does not open there. Nonces are random, which is sound for 2^32 blobs
under one key.

Master keys come newest first. The newest seals; all of them open. To rotate: put a new key in front, reseal
what `needs_reseal`, then drop the old one.

```
HookwrightError
└── SealError          encryption at rest can't do what was asked
    ├── InvalidKey     the configured master keys are unusable
    ├── UnknownKey     sealed with a master key that is not configured
    └── Tampered       not what was sealed: altered, cut short, or of another context
```
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.errors import HookwrightError

KEY_LENGTH: Final = 32  # bytes, as are those below
KEY_ID_LENGTH: Final = 4
_VERSION: Final = b"\x01"
_HEADER: Final = len(_VERSION) + KEY_ID_LENGTH
_NONCE: Final = 12
_TAG: Final = 16


class SealError(HookwrightError):
    """Encryption at rest can't do what was asked"""


class InvalidKey(SealError):
    """A master key is 32 random bytes in base64"""


class UnknownKey(SealError):
    """Sealed with a master key that is not configured: put it back in the list"""


class Tampered(SealError):
    """Not what was sealed: altered, cut short, or of another context"""


def generate_key(random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """A new master key: 32 bytes in base64, 44 characters."""
    return base64.b64encode(random_bytes(KEY_LENGTH)).decode()


class Sealer:
    """Seals, opens and hashes under a list of master keys, newest first. Safe to share between tasks."""

    def __init__(self, keys: Sequence[str], random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """Raises `InvalidKey`, which names a bad key by its place in the list and never by its content."""
        if not keys:
            raise InvalidKey("There is no master key: at least one is needed, 32 random bytes in base64")
        self._random_bytes = random_bytes
        self._ciphers: dict[bytes, AESGCM] = {}
        self._hash_keys: dict[bytes, bytes] = {}
        self._keys: dict[bytes, bytes] = {}
        for place, text in enumerate(keys, start=1):
            key = _decode_key(text, place)
            key_id = hashlib.sha256(b"hookwright key id" + key).digest()[:KEY_ID_LENGTH]
            if key_id in self._ciphers:
                first = list(self._ciphers).index(key_id) + 1
                raise InvalidKey(f"Master keys {first} and {place} are the same: remove one")
            self._ciphers[key_id] = AESGCM(key)
            self._keys[key_id] = key
            self._hash_keys[key_id] = _derive(key, b"hookwright keyed hash")
        self._newest = next(iter(self._ciphers))

    def __repr__(self) -> str:
        return f"Sealer({', '.join(key_id.hex() for key_id in self.key_ids)})"

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        """The ids of the master keys, newest first."""
        return tuple(self._ciphers)

    def seal(self, plain: bytes, context: str) -> bytes:
        """A blob that only `open` with the same context turns back into `plain`; 33 bytes longer than it."""
        header = _VERSION + self._newest
        nonce = self._random_bytes(_NONCE)
        return header + nonce + self._ciphers[self._newest].encrypt(nonce, plain, header + context.encode())

    def open(self, blob: bytes, context: str) -> bytes:
        """What was sealed. Raises `UnknownKey` or `Tampered`."""
        blob = bytes(blob)  # a driver may hand over a memoryview
        header = blob[:_HEADER]
        if len(blob) < _HEADER + _NONCE + _TAG or header[:1] != _VERSION:
            raise Tampered("Not a sealed blob: cut short, or of another version")
        cipher = self._ciphers.get(header[1:])
        if cipher is None:
            raise UnknownKey(
                f"Sealed with master key {header[1:].hex()}, which is not configured: put it back in the list"
            )
        nonce, sealed = blob[_HEADER : _HEADER + _NONCE], blob[_HEADER + _NONCE :]
        try:
            return cipher.decrypt(nonce, sealed, header + context.encode())
        except InvalidTag:
            raise Tampered from None

    @property
    def newest_header(self) -> bytes:
        """With which every blob begins that is sealed with the newest key."""
        return _VERSION + self._newest

    def needs_reseal(self, blob: bytes) -> bool:
        """Whether the blob is sealed with anything but the newest key."""
        return bytes(blob[:_HEADER]) != self.newest_header

    def keyed_hash(self, data: bytes) -> tuple[bytes, bytes]:
        """The newest key's id, and HMAC-SHA256 of `data` under a key derived from it: how API keys rest.

        Unlike a plain hash, a copied database alone does not let anyone test guesses.
        """
        return self._newest, hmac.digest(self._hash_keys[self._newest], data, "sha256")

    def keyed_hash_with(self, key_id: bytes, data: bytes) -> bytes | None:
        """The same under the key of that id, as before a rotation; None when that key is not configured."""
        key = self._hash_keys.get(bytes(key_id))
        return None if key is None else hmac.digest(key, data, "sha256")

    def derived_keys(self, purpose: bytes) -> dict[bytes, bytes]:
        """A key for `purpose` from each master key, by its id, newest first. Each purpose is named here alone or by its
        one caller, and never doubly."""
        return {key_id: _derive(key, purpose) for key_id, key in self._keys.items()}


def _decode_key(text: str, place: int) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        # `from None`: the cause quotes nothing today, but a traceback is no place for key material.
        raise InvalidKey(f"Master key {place} is not base64: 32 random bytes in base64 are needed") from None
    if len(key) != KEY_LENGTH:
        raise InvalidKey(f"Master key {place} is {len(key)} bytes: {KEY_LENGTH} are needed, in base64")
    return key


def _derive(key: bytes, info: bytes) -> bytes:
    """A key of its own for another purpose (HKDF-SHA256, RFC 5869), so that no key serves two algorithms."""
    return HKDF(algorithm=SHA256(), length=KEY_LENGTH, salt=None, info=info).derive(key)
