"""Keys and certificates for tests, quickly made."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def private_pem(key: Any) -> bytes:
    """A private key, not encrypted."""
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem


def public_pem(key: Any) -> bytes:
    """The public half of a private key."""
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def certificate(key: ec.EllipticCurvePrivateKey, name: str = "localhost") -> x509.Certificate:
    """A certificate that signs itself, for a host's name, or its address."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    try:
        names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        names = x509.DNSName(name)
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def pem(made: x509.Certificate) -> bytes:
    """A certificate as it is in files."""
    return made.public_bytes(serialization.Encoding.PEM)


def write(directory: Path, name: str = "localhost") -> tuple[Path, Path]:
    """A new key and its certificate, in files ``key.pem`` and ``cert.pem``; their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    paths = directory / "key.pem", directory / "cert.pem"
    paths[0].write_bytes(private_pem(key))
    paths[1].write_bytes(pem(certificate(key, name)))
    return paths
