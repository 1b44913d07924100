"""The AMP commands between the daemon and its worker processes.

The only module that both sides share besides the plain data of :mod:`transcribed.recognition`.
Structured values travel as JSON bytes; audio never does: a worker reads it from the spool.
"""

from __future__ import annotations

from twisted.protocols.amp import Command, Integer, String, Unicode

from transcribed.errors import ModelUnavailable, RecognitionFailed


class ResolveModel(Command):
    """Find a model's files, fetching or unpacking them where needed.

    `asked` is a Hub name, a directory, ``embedded`` or ``auto``; `cache` a directory for what must
    be unpacked or converted; `dtype` what to compute in, or ``auto``. Answers with an encoded
    :class:`transcribed.recognition.Model`.
    """

    arguments = [(b"asked", Unicode()), (b"cache", Unicode()), (b"dtype", Unicode())]
    response = [(b"model", String())]
    errors = {ModelUnavailable: b"MODEL_UNAVAILABLE"}


class LoadModel(Command):
    """Load a resolved model; `threads` is how many this worker may compute with.

    Answers, when it is ready to transcribe, with the precision it computes in.
    """

    arguments = [(b"model", String()), (b"threads", Integer()), (b"language", Unicode())]
    response = [(b"precision", Unicode())]
    errors = {ModelUnavailable: b"MODEL_UNAVAILABLE"}


class TranscribeWindows(Command):
    """Transcribe a batch of windows of spooled recordings, all in one language.

    `pieces` are encoded :class:`transcribed.recognition.Piece` values; answers with their encoded
    results (:data:`transcribed.recognition.WindowResult`) in the same order.
    """

    arguments = [(b"pieces", String())]
    response = [(b"results", String())]
    errors = {RecognitionFailed: b"RECOGNITION_FAILED"}
