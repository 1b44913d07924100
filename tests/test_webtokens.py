"""JSON web tokens: which are good, by which keys, and until when."""

from __future__ import annotations

import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from twisted.cred.error import UnauthorizedLogin
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import certificate, pem, private_pem, public_pem
from transcribed.credentials import Bearer, Identity, IRemembers, PartyAndToken
from transcribed.webtokens import LATEST, MAX_TOKEN, WebTokenChecker, read

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
SECRET = "s" * 32
LATER = int(time.time()) + 3600
GOOD = {"sub": "anna", "exp": LATER}


def segment(value: object) -> str:
    """A part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def forge(header: object, claims: object, secret: bytes | None, digest: str = "sha256") -> str:
    """A token signed with an HMAC by hand: PyJWT will not do it with such secrets."""
    text = f"{segment(header)}.{segment(claims)}"
    if secret is None:
        return f"{text}."
    return f"{text}.{segment(hmac.digest(secret, text.encode(), digest))}"


def jwk(key: Any, **more: object) -> dict[str, Any]:
    """A public key as a JSON web key."""
    made: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return made | more


class Case(SynchronousTestCase):
    """A file with a key, and who is found out by it."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())

    def checker(self, content: bytes | object, *more: str | None) -> WebTokenChecker:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.file.write_bytes(content)
        return WebTokenChecker(self.file, *more)

    def find(self, checker: WebTokenChecker, token: str, claim: str | None = None) -> Any:
        """The identity; None where it is refused."""
        shown = Bearer(token, None) if claim is None else PartyAndToken(token, claim)
        found: list[Any] = []
        checker.requestAvatarId(shown).addBoth(found.append)
        (identity,) = found
        if isinstance(identity, Failure):
            identity.trap(UnauthorizedLogin)
            return None
        assert isinstance(identity, Identity)
        return identity

    def sign(
        self, claims: dict[str, Any], key: Any = KEY, algorithm: str = "ES256", **h: Any
    ) -> str:
        return jwt.encode(claims, key, algorithm, headers=h)

    def assertGood(self, checker: WebTokenChecker, token: str) -> None:
        identity = self.find(checker, token)
        self.assertTrue(identity, "it is refused")
        self.assertEqual((identity.party, identity.good()), ("anna", True))

    def assertRefused(self, checker: WebTokenChecker, token: str) -> None:
        self.assertEqual(self.find(checker, token), None, token)

    def assertNoKeys(self, content: bytes | object, says: str) -> None:
        error = self.assertRaises(ValueError, self.checker, content)
        self.assertIn(says, str(error))
        self.assertEqual(str(error).count("\n"), 0)


class ClaimsTests(Case):
    """What a token must say."""

    def setUp(self) -> None:
        super().setUp()
        self.by_key = self.checker(public_pem(KEY))

    def test_good(self) -> None:
        identity = self.find(self.by_key, self.sign(GOOD))
        self.assertEqual((identity.party, identity.until), ("anna", float(LATER)))
        self.assertTrue(identity.good())
        self.assertTrue(self.find(self.by_key, self.sign(GOOD), "anna"))
        self.assertTrue(self.find(self.by_key, self.sign({**GOOD, "admin": True, "iss": "x"})))

    def test_goodOnesAreKnownAtOnce(self) -> None:
        """So that nobody else's wrong ones make them wait."""
        self.assertTrue(IRemembers.providedBy(self.by_key))
        good = self.sign(GOOD)
        for token, claim, known in (
            (good, None, True),
            (good, "anna", True),
            (good, "bjorn", False),
            (self.sign(GOOD, OTHER), None, False),
            (self.sign({**GOOD, "exp": 1}), None, False),
            ("rubbish", None, False),
        ):
            self.assertEqual(self.by_key.remembers(Bearer(token, claim)), known, (token, claim))

    def test_anotherParty(self) -> None:
        self.assertEqual(self.find(self.by_key, self.sign(GOOD), "bjorn"), None)

    def test_subAndExpAreRequired(self) -> None:
        for claims in ({"sub": "anna"}, {"exp": LATER}, {}, {**GOOD, "sub": None}):
            self.assertRefused(self.by_key, self.sign(claims))

    def test_sub(self) -> None:
        sub: object
        for sub in (5, True, [], {}, ["anna"], "", "x" * 129, "a\nb", "a\x00", "\x7f", "\x85"):
            # PyJWT signs no such sub by itself.
            token = jwt.api_jws.encode(json.dumps({**GOOD, "sub": sub}).encode(), KEY, "ES256")
            self.assertRefused(self.by_key, token)
        for sub in ("x" * 128, "a b", "å", "anna@example.org", "🎤"):
            self.assertEqual(self.find(self.by_key, self.sign({**GOOD, "sub": sub})).party, sub)

    def test_exp(self) -> None:
        exp: Any
        for exp in (
            int(time.time()) - 1,
            0,
            -1,
            -(10**400),
            float("inf"),
            float("-inf"),
            float("nan"),
            str(LATER),
            "",
            "never",
            True,
            [LATER],
            {},
        ):
            data = json.dumps({"sub": "anna", "exp": exp}).encode()
            self.assertRefused(self.by_key, jwt.api_jws.encode(data, KEY, "ES256"))
        for exp in (LATER, LATER + 0.5, 1e300, 10**400):
            data = json.dumps({"sub": "anna", "exp": exp}).encode()
            identity = self.find(self.by_key, jwt.api_jws.encode(data, KEY, "ES256"))
            self.assertEqual(identity.until, min(exp, LATEST))

    def test_notBefore(self) -> None:
        now = int(time.time())
        self.assertGood(self.by_key, self.sign({**GOOD, "nbf": now - 60}))
        nbf: object
        for nbf in (now + 60, "soon", float("inf"), []):
            data = json.dumps({**GOOD, "nbf": nbf}).encode()
            self.assertRefused(self.by_key, jwt.api_jws.encode(data, KEY, "ES256"))

    def test_claimsThatAreNone(self) -> None:
        for data in (b"", b"[]", b"null", b"5", b"{", b"\xff", b"[" * 5000):
            self.assertRefused(self.by_key, jwt.api_jws.encode(data, KEY, "ES256"))

    def test_audienceAndIssuer(self) -> None:
        plain, both = self.sign(GOOD), self.sign({**GOOD, "aud": "voice", "iss": "shop"})
        self.assertRefused(self.by_key, both)
        checker = self.checker(public_pem(KEY), "voice", "shop")
        self.assertGood(checker, both)
        self.assertGood(checker, self.sign({**GOOD, "aud": ["mail", "voice"], "iss": "shop"}))
        for claims in (
            GOOD,
            {**GOOD, "aud": "voice"},
            {**GOOD, "iss": "shop"},
            {**GOOD, "aud": "mail", "iss": "shop"},
            {**GOOD, "aud": "voice", "iss": "other"},
            {**GOOD, "aud": [], "iss": "shop"},
        ):
            self.assertRefused(checker, self.sign(claims))
        self.assertRefused(self.checker(public_pem(KEY), "voice"), plain)
        self.assertRefused(self.checker(public_pem(KEY), None, "shop"), plain)


class ForgedTests(Case):
    """Tokens that nobody who has the key has made."""

    def test_unsigned(self) -> None:
        for content in (public_pem(KEY), SECRET.encode(), {"keys": [jwk(KEY)]}):
            checker = self.checker(content)
            for name in ("none", "None", "NONE", ""):
                self.assertRefused(checker, forge({"alg": name, "typ": "JWT"}, GOOD, None))
                self.assertRefused(checker, forge({"alg": name}, GOOD, b""))

    def test_thePublicKeyIsNoSecret(self) -> None:
        stored = public_pem(KEY)
        for content in (stored, stored + b"\n\n", {"keys": [jwk(KEY)]}):
            checker = self.checker(content)
            for secret in (stored, stored.strip(), stored[:-1], json.dumps(jwk(KEY)).encode()):
                for bits in ("256", "384", "512"):
                    token = forge({"alg": f"HS{bits}"}, GOOD, secret, f"sha{bits}")
                    self.assertRefused(checker, token)

    def test_otherAlgorithms(self) -> None:
        checker = self.checker(SECRET.encode())
        self.assertGood(checker, self.sign(GOOD, SECRET, "HS256"))
        for bits in ("384", "512"):
            self.assertRefused(checker, self.sign(GOOD, SECRET * 2, f"HS{bits}"))
            self.assertRefused(
                checker, forge({"alg": f"HS{bits}"}, GOOD, SECRET.encode(), f"sha{bits}")
            )
        big = rsa.generate_private_key(65537, 2048)
        by_rsa = self.checker(public_pem(big))
        self.assertGood(by_rsa, self.sign(GOOD, big, "RS256"))
        for algorithm in ("RS384", "RS512", "PS256"):
            self.assertRefused(by_rsa, self.sign(GOOD, big, algorithm))
        self.assertRefused(by_rsa, self.sign(GOOD))

    def test_changed(self) -> None:
        checker = self.checker(public_pem(KEY))
        header, _, signature = self.sign(GOOD).split(".")
        self.assertRefused(checker, f"{header}.{segment({**GOOD, 'sub': 'bjorn'})}.{signature}")
        self.assertRefused(checker, self.sign(GOOD, OTHER))
        self.assertRefused(checker, self.sign(GOOD, OTHER, jwk=jwk(OTHER)))
        self.assertRefused(checker, self.sign(GOOD, OTHER, x5c=[segment(public_pem(OTHER))]))

    def test_rubbish(self) -> None:
        checker = self.checker(public_pem(KEY))
        for token in ("", ".", "..", "a.b.c", "å.å.å", "\ud800", "x" * MAX_TOKEN):
            self.assertRefused(checker, token)
        header: object
        for header in (b"[" * 5000, b"\xff", [], 5, {"alg": 5}, {"alg": "ES256", "kid": 5}, {}):
            self.assertRefused(checker, forge(header, GOOD, b"x"))

    def test_theLongest(self) -> None:
        checker = self.checker(public_pem(KEY))
        short = self.sign({**GOOD, "x": ""})
        room = (MAX_TOKEN - len(short)) * 3 // 4
        longest = self.sign({**GOOD, "x": "x" * (room - room % 3)})
        self.assertLessEqual(MAX_TOKEN - len(longest), 4)
        self.assertGood(checker, longest)
        self.assertRefused(checker, self.sign({**GOOD, "x": "x" * (room + 6)}))


class KeysTests(Case):
    """What may be in the file."""

    def test_certificate(self) -> None:
        self.assertGood(self.checker(pem(certificate(KEY))), self.sign(GOOD))
        self.assertGood(self.checker(b"Certificate:\n" + pem(certificate(KEY))), self.sign(GOOD))

    def test_edwardsAndOtherCurves(self) -> None:
        edwards = ed25519.Ed25519PrivateKey.generate()
        self.assertGood(self.checker(public_pem(edwards)), self.sign(GOOD, edwards, "EdDSA"))
        large = ec.generate_private_key(ec.SECP384R1())
        self.assertGood(self.checker(public_pem(large)), self.sign(GOOD, large, "ES384"))
        for wrong in (ec.generate_private_key(ec.SECP256K1()), dsa.generate_private_key(1024)):
            self.assertNoKeys(public_pem(wrong), "a key of a kind that is not for tokens")

    def test_kindsThatAreNotKnownAtAll(self) -> None:
        der = KEY.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for known, unknown in (("2a8648ce3d0201", "2a8648ce3d0209"), ("3d030107", "3d030109")):
            other = der.replace(bytes.fromhex(known), bytes.fromhex(unknown))
            self.assertNotEqual(other, der)
            lines = base64.encodebytes(other).decode()
            content = f"-----BEGIN PUBLIC KEY-----\n{lines}-----END PUBLIC KEY-----\n".encode()
            self.assertNoKeys(content, "a key of a kind that is not for tokens")

    def test_aSet(self) -> None:
        checker = self.checker({"keys": [jwk(KEY, kid="one"), jwk(OTHER, kid="two", use="sig")]})
        self.assertGood(checker, self.sign(GOOD, kid="one"))
        self.assertGood(checker, self.sign(GOOD, OTHER, kid="two"))
        self.assertGood(checker, self.sign(GOOD, OTHER))
        for token in (
            self.sign(GOOD, kid="two"),
            self.sign(GOOD, OTHER, kid="one"),
            self.sign(GOOD, kid="three"),
            self.sign(GOOD, kid=""),
        ):
            self.assertRefused(checker, token)
        self.assertGood(self.checker(jwk(KEY)), self.sign(GOOD, kid="any"))

    def test_keysOfASetForOtherThings(self) -> None:
        checker = self.checker({"keys": [jwk(KEY), jwk(OTHER, use="enc")]})
        self.assertRefused(checker, self.sign(GOOD, OTHER))
        self.assertNoKeys({"keys": [jwk(KEY, use="enc")]}, "no key for signatures")
        self.assertNoKeys({"keys": []}, "no key for signatures")

    def test_aSecretInASet(self) -> None:
        stored = SECRET.encode() * 2
        secret = {"kty": "oct", "k": segment(stored), "alg": "HS512"}
        checker = self.checker({"keys": [secret]})
        self.assertGood(checker, forge({"alg": "HS512"}, GOOD, stored, "sha512"))
        self.assertRefused(checker, forge({"alg": "HS256"}, GOOD, stored))
        self.assertNoKeys({"keys": [secret | {"k": segment(b"s" * 31)}]}, "32 bytes")

    def test_setsThatAreNone(self) -> None:
        oct: dict[str, Any] = {"kty": "oct"}
        for wrong in (
            {"keys": 5},
            {"keys": [5]},
            {"kty": 5},
            oct,
            {**oct, "k": 5},
            {**oct, "k": "TOPSECRET", "alg": "XX"},
            {"kty": "RSA", "alg": "none"},
            {"kty": "RSA", "n": "AA", "e": "AA"},
            {"kty": "EC", "crv": "P-256", "x": "TOPSECRET", "y": "AA"},
            b"{",
            b'{"k": "\xff"}',
        ):
            self.assertNoKeys(wrong, "it is no set of JSON web keys (RFC 7517)")

    def test_privateKeys(self) -> None:
        for wrong in (
            private_pem(KEY),
            KEY.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.BestAvailableEncryption(b"x"),
            ),
            public_pem(KEY) + private_pem(KEY),
            {"keys": [jwt.algorithms.ECAlgorithm.to_jwk(KEY, as_dict=True)]},
        ):
            self.assertNoKeys(wrong, "it holds a private key; only the public one belongs here")

    def test_weakKeys(self) -> None:
        self.assertNoKeys(b"s" * 31, "a shared secret must have 32 bytes")
        self.assertNoKeys(b" " + b"s" * 31 + b"\n", "a shared secret must have 32 bytes")
        self.assertGood(self.checker(SECRET.encode() + b"\n"), self.sign(GOOD, SECRET, "HS256"))
        weak = rsa.generate_private_key(65537, 1024)
        self.assertNoKeys(public_pem(weak), "an RSA key must have 2048 bits")

    def test_whatIsPublicIsNoSecret(self) -> None:
        """In other formats, too: who knows it could make tokens."""
        public = KEY.public_key()
        ssh = public.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        der = certificate(KEY).public_bytes(serialization.Encoding.DER)
        tight = json.dumps([jwk(KEY)], separators=(",", ":")).encode()
        for content in (ssh, der, tight, b"\xef\xbb\xbf" + json.dumps(jwk(KEY)).encode()):
            self.assertNoKeys(content, "it holds no key")
        described = b"Public-Key: (256 bit)\n" + public_pem(KEY)
        checker = self.checker(described)
        self.assertGood(checker, self.sign(GOOD))
        self.assertRefused(checker, forge({"alg": "HS256"}, GOOD, described.strip()))

    def test_noneAtAll(self) -> None:
        self.assertRaises(ValueError, self.checker, b"")
        self.assertRaises(FileNotFoundError, read, Path(self.mktemp()))

    def test_rotated(self) -> None:
        checker = self.checker({"keys": [jwk(KEY, kid="old")]})
        identity = self.find(checker, self.sign(GOOD))
        self.file.write_text(json.dumps({"keys": [jwk(KEY, kid="old"), jwk(OTHER, kid="new")]}))
        checker.reload()
        self.assertTrue(identity.good())
        self.assertGood(checker, self.sign(GOOD, OTHER, kid="new"))
        self.file.write_text(json.dumps({"keys": [jwk(OTHER, kid="new")]}))
        checker.reload()
        self.assertFalse(identity.good())
        self.assertRefused(checker, self.sign(GOOD, kid="old"))

    def test_aBrokenFileKeepsTheKeys(self) -> None:
        checker = self.checker(public_pem(KEY))
        identity = self.find(checker, self.sign(GOOD))
        for content in (b"", b"rubbish", private_pem(OTHER), b'{"kty":"oct"}'):
            self.file.write_bytes(content)
            self.assertRaises(ValueError, checker.reload)
        self.file.unlink()
        self.assertRaises(OSError, checker.reload)
        self.assertTrue(identity.good())
        self.assertGood(checker, self.sign(GOOD))
