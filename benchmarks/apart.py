"""An object in a process of its own, whose methods are called over a pipe, one at a time."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Failed(Exception):
    """The other process could not do it; says why."""


class Apart:
    """What `make` gives, in a new process. Between calls that process waits and computes nothing.

    :param make: to be sent to the process: a function of a module, or a partial of one.
    :param log: a file for what the libraries in there print.
    :raises Failed: when `make` does.
    """

    def __init__(self, make: Callable[[], object], log: Path) -> None:
        # Not forked: the engines' threads and locks would not survive it.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, log), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    @property
    def pid(self) -> int:
        """The process' id."""
        assert self._process.pid is not None
        return self._process.pid

    def call(self, method: str, *arguments: object) -> Any:
        """What the object's method returns; raises :exc:`Failed` when it does not."""
        self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            done, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"its process ended with status {self._process.exitcode}") from None
        if not done:
            self.stop()
            raise Failed(answer)
        return answer

    def stop(self) -> None:
        """End the process, which sees the pipe close."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, make: Callable[[], object], log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        served = make()
        pipe.send((True, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((True, getattr(served, method)(*arguments)))
    except EOFError:
        pass  # It is over.
    except Exception as e:
        traceback.print_exc()
        pipe.send((False, f"{type(e).__name__}: {e}".splitlines()[0][:200]))
