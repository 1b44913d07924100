"""JSON web tokens (RFC 7519), for services that already have accounts: ``--auth jwt:``.

The party is ``sub``, ``exp`` is required. The key says which algorithm is meant, never the token:
so a public key is not taken for a shared secret (RFC 8725, section 3.1).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from transcribed.credentials import IBearerToken, Identity, IReloads, IRemembers
from transcribed.wire import is_party

MAX_TOKEN = 16 * 1024
MIN_SECRET, MIN_RSA = 32, 2048
"""The fewest bytes of a shared secret (RFC 7518, section 3.2), and bits of an RSA key."""
LATEST = 2**53
"""Seconds since the epoch that no clock gets to, and a float can say."""
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_WRONG_KIND = "it holds a key of a kind that is not for tokens"
_SYMMETRIC = {"HS256", "HS384", "HS512"}
_SECRET = re.compile(rb"[!-Z\\^-~][!-~]*")


class Key:
    """One key and the one algorithm that it is for.

    :ivar name: its ``kid``, where it has one.
    """

    def __init__(self, name: str | None, material: Any, algorithm: str) -> None:
        self.name = name
        self.material = material
        self.algorithm = algorithm


def _of_public(name: str | None, material: Any) -> Key:
    match material:
        case rsa.RSAPublicKey():
            if material.key_size < MIN_RSA:
                raise ValueError(f"an RSA key must have {MIN_RSA} bits")
            return Key(name, material, "RS256")
        case ec.EllipticCurvePublicKey() if material.curve.name in _CURVES:
            return Key(name, material, _CURVES[material.curve.name])
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return Key(name, material, "EdDSA")
    raise ValueError(_WRONG_KIND)


def read(path: Path) -> list[Key]:
    """The keys of a file: a PEM public key or certificate, a JWK set, or a shared secret.

    Raises :exc:`OSError`, or :exc:`ValueError`.
    """
    data = path.read_bytes().strip()
    if b"PRIVATE KEY-----" in data:
        raise ValueError("it holds a private key; only the public one belongs here")
    if b"-----BEGIN" in data:
        return [_of_public(None, _from_pem(data))]
    if data.startswith(b"{"):
        return _from_set(data)
    # What is public in some other format must not be taken for a secret.
    if not _SECRET.fullmatch(data):
        raise ValueError("it holds no key; a shared secret is one word of ASCII")
    if len(data) < MIN_SECRET:
        raise ValueError(f"a shared secret must have {MIN_SECRET} bytes")
    return [Key(None, data, "HS256")]


def _from_pem(data: bytes) -> Any:
    try:
        if b"-----BEGIN CERTIFICATE" in data:
            return load_pem_x509_certificate(data).public_key()
        return load_pem_public_key(data)
    except UnsupportedAlgorithm as e:
        raise ValueError(_WRONG_KIND) from e


def _from_set(data: bytes) -> list[Key]:
    try:
        found = json.loads(data)
        keys = [
            _of_jwk(each) for each in found.get("keys", [found]) if each.get("use", "sig") == "sig"
        ]
    except (
        AttributeError,
        json.JSONDecodeError,
        KeyError,
        NotImplementedError,  # of PyJWT, for a kind of key that it does not know
        TypeError,
        UnicodeDecodeError,
        jwt.PyJWTError,
    ) as e:
        # Their texts may have parts of a key in them.
        raise ValueError("it is no set of JSON web keys (RFC 7517)") from e
    if not keys:
        raise ValueError("it holds no key for signatures")
    return keys


def _of_jwk(each: dict[str, Any]) -> Key:
    if "d" in each:
        raise ValueError("it holds a private key; only the public one belongs here")
    made = jwt.PyJWK(each)
    if made.algorithm_name not in _SYMMETRIC:
        key = _of_public(each.get("kid"), made.key)
        return Key(key.name, key.material, each.get("alg", key.algorithm))
    if len(made.key) < MIN_SECRET:
        raise ValueError(f"a shared secret must have {MIN_SECRET} bytes")
    return Key(each.get("kid"), made.key, made.algorithm_name)


@implementer(ICredentialsChecker, IReloads, IRemembers)
class WebTokenChecker:
    """Finds out whose a JSON web token is.

    :param path: see :func:`read`.
    :param audience: what ``aud`` must have; without it, a token that has an ``aud`` is refused.
    :param issuer: what ``iss`` must be; any, where it is None.

    Raises :exc:`OSError`, or :exc:`ValueError`.
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(self, path: Path, audience: str | None = None, issuer: str | None = None) -> None:
        self._path = path
        self._audience = audience
        self._issuer = issuer
        self._keys = read(path)

    def reload(self) -> None:
        """Read the file again; see :class:`transcribed.credentials.IReloads`."""
        self._keys = read(self._path)

    def remembers(self, credentials: object) -> bool:
        """Whether this token is good, which is found out at once; see :class:`IRemembers`."""
        return self._identify(credentials) is not None

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """Whose it is; fails with :exc:`UnauthorizedLogin`."""
        identity = self._identify(credentials)
        return fail(UnauthorizedLogin()) if identity is None else succeed(identity)

    def _identify(self, credentials: Any) -> Identity | None:
        token = credentials.token()
        claims = self._claims(token) if len(token) <= MAX_TOKEN else None
        party = claims and claims["sub"]
        if not isinstance(party, str) or not is_party(party):
            return None
        if credentials.claim() not in (None, party):
            return None
        assert claims is not None
        until = float(min(claims["exp"], LATEST))
        return Identity(party, until, lambda: self._claims(token) is not None)

    def _claims(self, token: str) -> dict[str, Any] | None:
        """What a good token says."""
        try:
            name = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError):
            return None
        for key in self._keys:
            if None in (name, key.name) or name == key.name:
                claims = self._verified(token, key)
                if claims is not None:
                    return claims
        return None

    def _verified(self, token: str, key: Key) -> dict[str, Any] | None:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.material,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["exp", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            return None
        # PyJWT takes digits in a string, too.
        return claims if type(claims["exp"]) in (int, float) else None
