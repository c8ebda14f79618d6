"""Certificates for the servers of the tests, by cryptography, which comes with moto."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def make_authority(folder: Path, name: str = "ca") -> None:
    """``ca.pem`` and ``ca.key``."""
    write(folder, name, signed(name, "", None, lasts=2 * DAY))


def make_certificate(folder: Path, name: str, host: str, *, ended: bool = False) -> None:
    """``NAME.pem`` and ``NAME.key``, signed by ``ca``; the host is a name or an address."""
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key: Any = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    write(folder, name, signed(name, host, (authority, key), lasts=-DAY if ended else 2 * DAY))


def make_self_signed(folder: Path, name: str, host: str) -> None:
    """``NAME.pem`` and ``NAME.key``, of an authority that nobody knows."""
    write(folder, name, signed(name, host, None, lasts=2 * DAY))


def signed(name: str, host: str, by: Any, lasts: datetime.timedelta) -> tuple[Any, Any]:
    """A certificate and its key; by itself, if ``by`` (a certificate and its key) is None."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    authority, signer = by or (None, key)
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 3 * DAY)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .add_extension(x509.BasicConstraints(ca=not by, path_length=None), critical=True)
    )
    if host:
        names = x509.SubjectAlternativeName([general_name(host)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256()), key


def general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write(folder: Path, name: str, made: tuple[Any, Any]) -> None:
    certificate, key = made
    pem = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, *plain))
