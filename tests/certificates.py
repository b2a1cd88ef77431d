"""An authority made for a test, and certificates of servers and clients that it signed."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = ("hooks.example.com", "127.0.0.1")


class Certificates:
    """Everything lies in `folder`. A server's is for `HOSTS`, unless said otherwise."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Test authority")
        certificate = self._build(self._name, self._key, None)
        self.ca_file = str(folder / "ca.pem")
        Path(self.ca_file).write_bytes(_pem(certificate))

    def server_context(
        self,
        *,
        names: Sequence[str] = HOSTS,
        from_h: float = -1,
        until_h: float = 1,
        self_signed: bool = False,
    ) -> ssl.SSLContext:
        """Valid `from_h` until `until_h` hours from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        file = self._folder / "leaf.pem"
        file.write_bytes(_key_pem(key) + _pem(self._build(_name("leaf"), key, names, from_h, until_h, self_signed)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def client_files(self, password: bytes | None = None) -> tuple[str, str]:
        """The files of a client's certificate and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert_file, key_file = self._folder / "client.pem", self._folder / "client.key"
        cert_file.write_bytes(_pem(self._build(_name("client"), key, ["client.example.com"])))
        key_file.write_bytes(_key_pem(key, password))
        return str(cert_file), str(key_file)

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: Sequence[str] | None,
        from_h: float = -1,
        until_h: float = 1,
        self_signed: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(hours=from_h))
            .not_valid_after(now + datetime.timedelta(hours=until_h))
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(it) for it in names]), critical=False)
        return builder.sign(key if self_signed else self._key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    how: Any = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
