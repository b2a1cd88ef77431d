"""Encryption at rest: what was sealed opens, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from core.errors import HookwrightError
from core.secrets.sealing import InvalidKey, Sealer, SealError, Tampered, UnknownKey, generate_key

OLD = base64.b64encode(bytes(range(32))).decode()
NEW = base64.b64encode(bytes(range(100, 132))).decode()
CONTEXT = "subscription_secret:0198-1"
SEALER = Sealer([NEW, OLD])


@given(st.binary(max_size=300), st.text(max_size=40))
def test_what_was_sealed_opens(plain: bytes, context: str) -> None:
    blob = SEALER.seal(plain, context)
    assert len(blob) == len(plain) + 33
    assert SEALER.open(blob, context) == plain


def test_a_blob_has_the_layout_that_the_docstring_draws() -> None:
    blob = Sealer([OLD], random_bytes=lambda count: b"n" * count).seal(b"plain", CONTEXT)
    key_id = hashlib.sha256(b"hookwright key id" + bytes(range(32))).digest()[:4]
    assert blob[:17] == b"\x01" + key_id + b"n" * 12
    # Opened by hand: blobs in databases must stay readable whatever becomes of this module.
    assert AESGCM(bytes(range(32))).decrypt(b"n" * 12, blob[17:], blob[:5] + CONTEXT.encode()) == b"plain"


def test_no_nonce_is_used_twice() -> None:
    assert len({SEALER.seal(b"same", CONTEXT) for _ in range(100)}) == 100


def test_a_blob_does_not_open_in_another_context() -> None:
    with pytest.raises(Tampered):
        SEALER.open(SEALER.seal(b"plain", CONTEXT), "subscription_secret:0198-2")


def test_changing_any_byte_is_noticed() -> None:
    blob = SEALER.seal(b"plain", CONTEXT)
    for place in range(len(blob)):
        altered = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
        with pytest.raises(UnknownKey if 1 <= place < 5 else Tampered):
            SEALER.open(altered, CONTEXT)


def test_cutting_it_short_is_noticed() -> None:
    blob = SEALER.seal(b"plain", CONTEXT)
    for length in range(len(blob)):
        with pytest.raises(Tampered):
            SEALER.open(blob[:length], CONTEXT)


def test_relabelling_a_blob_with_another_key_is_noticed() -> None:
    blob = Sealer([OLD]).seal(b"plain", CONTEXT)
    with pytest.raises(Tampered):
        SEALER.open(blob[:1] + SEALER.key_ids[0] + blob[5:], CONTEXT)


def test_rotation_opens_the_old_and_reseals_with_the_new() -> None:
    old_blob = Sealer([OLD]).seal(b"plain", CONTEXT)
    assert SEALER.needs_reseal(old_blob)
    new_blob = SEALER.seal(SEALER.open(old_blob, CONTEXT), CONTEXT)
    assert not SEALER.needs_reseal(new_blob)
    assert Sealer([NEW]).open(new_blob, CONTEXT) == b"plain"


def test_a_blob_of_a_dropped_key_names_that_key_by_id() -> None:
    blob = Sealer([OLD]).seal(b"plain", CONTEXT)
    with pytest.raises(UnknownKey) as refused:
        Sealer([NEW]).open(blob, CONTEXT)
    assert Sealer([OLD]).key_ids[0].hex() in refused.value.message


def test_a_database_driver_may_hand_over_a_memoryview() -> None:
    blob = memoryview(SEALER.seal(b"plain", CONTEXT))
    assert SEALER.open(blob, CONTEXT) == b"plain"  # type: ignore[arg-type]
    assert not SEALER.needs_reseal(blob)  # type: ignore[arg-type]


def test_key_ids_come_newest_first() -> None:
    assert SEALER.key_ids == (Sealer([NEW]).key_ids[0], Sealer([OLD]).key_ids[0])


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ([], "at least one"),
        ([""], "Master key 1 is 0 bytes"),
        ([NEW, "not base64 at all!"], "Master key 2 is not base64"),
        (["é" * 44], "Master key 1 is not base64"),
        ([base64.b64encode(b"k" * 31).decode()], "Master key 1 is 31 bytes"),
        ([NEW, OLD, base64.b64encode(b"k" * 33).decode()], "Master key 3 is 33 bytes"),
        ([NEW, OLD, NEW], "Master keys 1 and 3 are the same"),
        ([OLD, OLD + "\n"], "Master keys 1 and 2 are the same"),
    ],
)
def test_unusable_keys_are_refused_by_place_and_never_repeated(keys: list[str], hint: str) -> None:
    with pytest.raises(InvalidKey) as refused:
        Sealer(keys)
    assert hint in refused.value.message
    assert [key for key in keys if key and key in refused.value.message] == []


def test_neither_repr_nor_attributes_in_it_show_a_key() -> None:
    assert repr(SEALER) == f"Sealer({SEALER.key_ids[0].hex()}, {SEALER.key_ids[1].hex()})"


def test_a_generated_key_is_accepted() -> None:
    assert generate_key(lambda count: bytes(range(count))) == OLD
    Sealer([generate_key(), generate_key()])


@pytest.mark.parametrize("error", [InvalidKey, UnknownKey, Tampered])
def test_all_errors_are_of_one_family(error: type[SealError]) -> None:
    assert issubclass(error, SealError)
    assert issubclass(error, HookwrightError)
    assert error().message


def test_a_keyed_hash_is_found_again_after_rotation() -> None:
    key_id, digest = Sealer([OLD]).keyed_hash(b"sk_live_1")
    assert key_id == SEALER.key_ids[1]
    assert SEALER.keyed_hash_with(key_id, b"sk_live_1") == digest
    assert SEALER.keyed_hash_with(key_id, b"sk_live_2") != digest
    assert SEALER.keyed_hash(b"sk_live_1") == (
        SEALER.key_ids[0],
        SEALER.keyed_hash_with(SEALER.key_ids[0], b"sk_live_1"),
    )
    assert SEALER.keyed_hash(b"sk_live_1")[1] != digest
    assert SEALER.keyed_hash_with(b"none", b"sk_live_1") is None


def test_a_keyed_hash_is_hmac_under_a_key_that_hkdf_derives() -> None:
    # RFC 5869 spelled out: extract with a salt of zeros, expand one block.
    extracted = hmac.digest(bytes(32), bytes(range(32)), "sha256")
    derived = hmac.digest(extracted, b"hookwright keyed hash" + b"\x01", "sha256")
    assert Sealer([OLD]).keyed_hash(b"data")[1] == hmac.digest(derived, b"data", "sha256")
