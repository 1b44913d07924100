"""How RFC 6455 wants a server to close on what a client sends, by itself: knows nothing of ours."""

from __future__ import annotations

import codecs

from tests.memoryclient import CLOSE, TEXT, is_start, masked
from transcribed.wire import MAX_TEXT

GOOD_CODES = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}


def _is_good(code: int) -> bool:
    return code in GOOD_CODES or 3000 <= code <= 4999


def verdict(data: bytes) -> tuple[int | None, int]:
    """How a server must close on these frames of a client's, if at all, and how many messages, and
    pieces of them, come before that."""
    at = messages = size = 0
    inside = text = False
    decoder = codecs.getincrementaldecoder("utf-8")()
    while len(data) - at >= 2:
        first, second = data[at], data[at + 1]
        fin, reserved, opcode = first & 0x80, first & 0x70, first & 0x0F
        length, control = second & 0x7F, opcode >= 8
        if reserved or not second & 0x80:
            return 1002, messages
        if control and (not fin or length > 125 or opcode > 10 or (opcode, length) == (8, 1)):
            return 1002, messages
        if not control and (opcode > 2 or inside != (opcode == 0)):
            return 1002, messages
        width = {126: 2, 127: 8}.get(length, 0)
        start = at + 2 + width + 4
        if len(data) < start:
            break
        if width:
            length = int.from_bytes(data[at + 2 : at + 2 + width], "big")
            if not (126 if width == 2 else 65536) <= length < 2**63:
                return 1002, messages
        payload = masked(data[start : start + length], data[start - 4 : start])
        whole = len(payload) == length
        at = start + length
        if control:
            if whole and opcode == CLOSE:
                return _closing(payload), messages
        else:
            messages += 1
            if opcode:
                inside, text, size = True, opcode == TEXT, 0
                decoder.reset()
            size, bad = size + length, False
            if text and size > MAX_TEXT:
                return 1009, messages
            try:
                if text:
                    decoder.decode(payload, bool(whole and fin))
                    # Python waits for the third octet of what the second shows to be wrong.
                    bad = not is_start(decoder.getstate()[0])
            except UnicodeDecodeError:
                bad = True
            if bad:
                return 1007, messages
            inside = inside and not (whole and fin)
        if not whole:
            break
    return None, messages


def _closing(payload: bytes) -> int:
    if payload and not _is_good(int.from_bytes(payload[:2], "big")):
        return 1002
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        return 1007
    return 1000
