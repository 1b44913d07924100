"""A real worker process without a model, which misbehaves as the recording's path says."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from ampoule.child import AMPChild
from twisted.internet.defer import Deferred

from transcribed.commands import LoadModel, ResolveModel, TranscribeWindows
from transcribed.errors import RecognitionFailed
from transcribed.recognition import CTCResult, Model, decode_pieces, encode, encode_results


class StubWorker(AMPChild):  # type: ignore[misc]
    """Answers windows with its pid in place of the stride."""

    def __init__(self) -> None:
        super().__init__()
        self._hoard: list[bytes] = []

    @ResolveModel.responder
    def resolve(self, asked: str, **rest: object) -> dict[str, object]:
        print("a line on stdout")
        return {"model": encode(Model(asked, "/m", "ctc", "x", 1, None, 20, 3))}

    @LoadModel.responder
    def load(self, model: bytes, threads: int, language: str) -> dict[str, object]:
        return {"precision": f"{os.environ['OMP_NUM_THREADS']} threads"}

    @TranscribeWindows.responder
    def transcribe(self, pieces: bytes) -> Any:
        batch = decode_pieces(pieces)
        path = batch[0].audio.path
        if path == "exit":
            os._exit(7)
        if path.startswith("orphan:"):
            Path(path.partition(":")[2]).write_text(str(subprocess.Popen(["sleep", "100"]).pid))
            os._exit(8)
        if path == "rubbish":
            return {"results": b"rubbish"}
        if path == "sigstop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if path == "refuse":
            raise RecognitionFailed("no such file")
        if path == "raise":
            raise ZeroDivisionError
        if path == "noise":
            os.write(4, b"\xff" * 100)
        if path == "grow":
            self._hoard.append(b"x" * (64 << 20))
        if path in ("wait", "sigstop", "noise"):
            return Deferred()
        return {"results": encode_results([CTCResult(float(os.getpid()), "|", [])] * len(batch))}
