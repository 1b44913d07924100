"""Tokens in a file, a line a party: of ``transcribed token``, for ``--auth tokens:``.

A token is ``ID.SECRET``. The ID finds the line, which holds a slow salted hash of the secret
(scrypt, RFC 7914) and the party, but not the secret, which is 256 random bits.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from zope.interface import implementer

from transcribed.credentials import IBearerToken, Identity, IReloads, IRemembers
from transcribed.files import written
from transcribed.wire import is_party

LOG_N, R, P = 13, 8, 1
"""The cost of the hash, as in RFC 7914: 8 MiB, some 20 ms. The secret cannot be guessed anyway."""
SECRET_BYTES, ID_BYTES, SALT_BYTES, HASH_BYTES = 32, 9, 16, 32
_TOKEN = re.compile(r"([\w-]{1,64})\.([\w-]{1,128})", re.ASCII)
_NAME = r"[^\x00-\x1f\x7f-\x9f]{1,128}"
_LINE = re.compile(rf"([\w-]+) scrypt\$(\d+)\$(\d+)\$(\d+)\$([\w-]+)\$([\w-]+) ({_NAME})", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A line: whose token it is, and the hash of its secret."""

    id: str
    party: str
    salt: bytes
    hash: bytes
    cost: tuple[int, int, int]

    def matches(self, secret: str) -> bool:
        """Whether it is the secret of this token; takes a while, whatever the answer."""
        return compare_digest(self.hash, _slow(secret, self.salt, self.cost))

    def line(self) -> str:
        """It as a line of the file."""
        cost = "$".join(map(str, self.cost))
        return f"{self.id} scrypt${cost}${_text(self.salt)}${_text(self.hash)} {self.party}"


def _slow(secret: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    log_n, r, p = cost
    memory = 128 * (1 << log_n) * r * 2
    return hashlib.scrypt(
        secret.encode("utf-8", "replace"),
        salt=salt,
        n=1 << log_n,
        r=r,
        p=p,
        maxmem=memory,
        dklen=HASH_BYTES,
    )


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def new(party: str) -> tuple[str, Entry]:
    """A token for a party, and its line; raises :exc:`ValueError` where that is no party."""
    if not is_party(party) or party != party.strip():
        raise ValueError(
            "a party is 1 to 128 characters without control characters, or spaces at its ends"
        )
    # Not with a "-" in front, which would be an option in a shell.
    id = _text(secrets.token_bytes(ID_BYTES)).replace("-", "x").replace("_", "y")
    secret = secrets.token_urlsafe(SECRET_BYTES)
    salt = secrets.token_bytes(SALT_BYTES)
    cost = (LOG_N, R, P)
    return f"{id}.{secret}", Entry(id, party, salt, _slow(secret, salt, cost), cost)


def read(path: Path) -> dict[str, Entry]:
    """The lines of a file by their ids; raises :exc:`OSError`, or :exc:`ValueError`."""
    entries: dict[str, Entry] = {}
    # Not splitlines: a party may have a line separator of Unicode's in it.
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            entry = _entry(line)
        except ValueError:
            # Not what is in it: that may be a token that somebody put there by mistake.
            raise ValueError(f"line {number} was not made by transcribed token") from None
        entries[entry.id] = entry
    return entries


def _entry(line: str) -> Entry:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError
    cost = (int(match[2]), int(match[3]), int(match[4]))
    log_n, r, p = cost
    if not (1 <= log_n <= 20 and 1 <= r <= 32 and 1 <= p <= 16):
        raise ValueError
    return Entry(match[1], match[7], _bytes(match[5]), _bytes(match[6]), cost)


def _comments(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").split("\n") if line.startswith("#")]


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Entry]]:
    """The entries of a file, which is written anew with what they are in the end."""
    path = path.resolve()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Two who change it at once do it one after the other.
        fcntl.flock(directory, fcntl.LOCK_EX)
        before = path.stat() if path.exists() else None
        entries = read(path) if before is not None else {}
        yield entries
        lines = _comments(path) if before is not None else []
        text = "".join(f"{line}\n" for line in [*lines, *(e.line() for e in entries.values())])
        with written(path) as file:
            if before is not None:
                # So that the daemon's user can go on reading what root has changed.
                os.fchmod(file.fileno(), before.st_mode & 0o777)
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(text.encode())
    finally:
        os.close(directory)


def add(path: Path, party: str) -> tuple[str, bool]:
    """Give a party a token instead of its old one; answers with it, and whether there was one.

    Raises :exc:`OSError`, or :exc:`ValueError`.
    """
    token, entry = new(party)
    with _changing(path) as entries:
        old = [each.id for each in entries.values() if each.party == party]
        for id in old:
            del entries[id]
        entries[entry.id] = entry
    return token, bool(old)


def revoke(path: Path, party: str) -> bool:
    """Take a party's token away; answers whether it had one. Raises as :func:`add`."""
    with _changing(path) as entries:
        old = [each.id for each in entries.values() if each.party == party]
        for id in old:
            del entries[id]
    return bool(old)


def _in_thread(work: Callable[[], bool]) -> Deferred[bool]:
    from twisted.internet.threads import deferToThread

    return deferToThread(work)


@implementer(ICredentialsChecker, IReloads, IRemembers)
class TokenChecker:
    """Finds out whose a token is.

    The slow hash is computed once a token, in a thread and one at a time; after that a keyed digest
    in memory tells that the very same token is shown again.

    :param in_thread: runs something slow elsewhere.

    Raises :exc:`OSError`, or :exc:`ValueError`.
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(
        self, path: Path, in_thread: Callable[[Callable[[], bool]], Deferred[bool]] = _in_thread
    ) -> None:
        self._path = path
        self._in_thread = in_thread
        self._lock = DeferredLock()
        self._key = secrets.token_bytes(32)
        self._seen: dict[str, bytes] = {}
        # What is unknown takes as long as what is wrong.
        self._nobody = new("nobody")[1]
        self._entries = read(path)

    def reload(self) -> None:
        """Read the file again; see :class:`transcribed.credentials.IReloads`."""
        entries = read(self._path)
        for id in list(self._seen):
            if entries.get(id) != self._entries.get(id):
                del self._seen[id]
        self._entries = entries

    def _find(self, credentials: Any) -> tuple[Entry, str, bool] | None:
        """The line to compare with, the secret, and whether they may be a match at all.

        None for what does not look like a token of ours.
        """
        match = _TOKEN.fullmatch(credentials.token())
        if match is None:
            # None of ours, e.g. a JSON web token: nothing is hashed for it.
            return None
        id, secret = match.groups()
        entry = self._entries.get(id)
        if entry is None:
            return self._nobody, secret, False
        return entry, secret, credentials.claim() in (None, entry.party)

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode("utf-8", "replace"), key=self._key).digest()

    def remembers(self, credentials: object) -> bool:
        """Whether this token was found good before; see :class:`IRemembers`."""
        found = self._find(credentials)
        if found is None:
            return False
        entry, secret, possible = found
        seen = self._seen.get(entry.id, b"")
        return compare_digest(seen, self._digest(secret)) and possible

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """Whose it is; fails with :exc:`UnauthorizedLogin`."""
        found = self._find(credentials)
        if found is None:
            return fail(UnauthorizedLogin())
        entry, secret, possible = found
        if self.remembers(credentials):
            return succeed(self._identity(entry))

        def judge(matches: bool) -> Identity:
            # It may have been revoked meanwhile.
            if not (matches and possible and self._entries.get(entry.id) == entry):
                raise UnauthorizedLogin
            self._seen[entry.id] = self._digest(secret)
            return self._identity(entry)

        checked: Deferred[bool] = self._lock.run(self._in_thread, lambda: entry.matches(secret))
        return checked.addCallback(judge)

    def _identity(self, entry: Entry) -> Identity:
        return Identity(entry.party, good=lambda: self._entries.get(entry.id) == entry)
