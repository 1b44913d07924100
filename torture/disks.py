"""Spool and database on a disk that is full, too small, or gives errors, for a while."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path

from torture.crowd import Crowd
from torture.fault import Fault
from torture.rig import Rig

_SOURCE = Path(__file__).with_name("eio.c")
_SIZE = 16 << 20


class _DiskFault(Fault):
    """A fault that comes and goes."""

    patience = 120.0
    internal = True

    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """See :class:`Fault`."""
        await rig.logged("ready: model")
        for turn in range(2 if rig.quick else 20):
            await rig.event("accepted", rig.rng.randrange(1, 4), 5.0)
            rig.injected += 1
            self.begin(rig)
            await rig.pause(rig.rng.uniform(0.2, 1.0 if rig.quick else 3.0))
            if turn % 5 == 4:
                # A restart in the midst of it, so that what is on the disk is all there is.
                await rig.kill()
                self.end(rig)
                rig.launch()
                await rig.logged("ready: model")
            self.end(rig)
            await rig.event("accepted", 1, 5.0)

    @abstractmethod
    def begin(self, rig: Rig) -> None:
        """From now on."""

    @abstractmethod
    def end(self, rig: Rig) -> None:
        """All is well again."""


class FileSizeLimit(_DiskFault):
    """Files may not become longer than a limit: EFBIG, which SQLite takes for an I/O error."""

    name = "file size limit"

    def begin(self, rig: Rig) -> None:
        """See :class:`_DiskFault`."""
        limit = rig.rng.choice((0, 1, 4096, 20_000, 50_000))
        resource.prlimit(rig.daemon.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def end(self, rig: Rig) -> None:
        """See :class:`_DiskFault`."""
        if rig.daemon.ended.called:
            return
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(rig.daemon.pid, resource.RLIMIT_FSIZE, infinite)


class FullDisk(_DiskFault):
    """A small disk that others fill to its last byte, or nearly so."""

    name = "disk full"
    options = ("--min-free-disk", "0")
    in_quick = False

    def missing(self) -> str | None:
        """See :class:`Fault`."""
        with tempfile.TemporaryDirectory() as folder:
            reason = _mount(Path(folder))
            if reason is None:
                _unmount(Path(folder))
        return reason

    def prepare(self, rig: Rig) -> None:
        """See :class:`Fault`."""
        rig.state.mkdir(mode=0o700)
        reason = _mount(rig.state)
        if reason is not None:
            raise OSError(reason)

    def begin(self, rig: Rig) -> None:
        """See :class:`_DiskFault`."""
        disk = os.statvfs(rig.state)
        spare = rig.rng.choice((0, 0, 4096, 30_000, 100_000))
        with open(rig.state / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - spare))
            while spare == 0:
                file.seek(0, os.SEEK_END)
                file.write(bytes(disk.f_frsize))

    def end(self, rig: Rig) -> None:
        """See :class:`_DiskFault`."""
        (rig.state / "ballast").unlink(missing_ok=True)

    def clean(self, rig: Rig) -> None:
        """See :class:`Fault`."""
        _unmount(rig.state)


def _mount(path: Path) -> str | None:
    """Mount a small disk there; why it cannot be."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0700", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as e:
        return str(e)
    return None if done.returncode == 0 else f"mounting is not permitted: {done.stderr.strip()}"


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


class BrokenDisk(_DiskFault):
    """Writing and syncing below the state directory fail with EIO."""

    name = "disk errors"
    in_quick = False

    def missing(self) -> str | None:
        """See :class:`Fault`."""
        return None if shutil.which("cc") else "there is no C compiler"

    def prepare(self, rig: Rig) -> None:
        """See :class:`Fault`."""
        library = rig.inject / "eio.so"
        state, flag = os.path.realpath(rig.state), rig.inject / "eio"
        names = [f'-DBELOW="{state}/"', f'-DFLAG="{flag}"']
        options = ["-shared", "-fPIC", "-O2", *names, "-o", str(library)]
        subprocess.run(["cc", *options, str(_SOURCE), "-ldl"], check=True)
        rig.environment["LD_PRELOAD"] = str(library)

    def begin(self, rig: Rig) -> None:
        """See :class:`_DiskFault`."""
        (rig.inject / "eio").touch()

    def end(self, rig: Rig) -> None:
        """See :class:`_DiskFault`."""
        (rig.inject / "eio").unlink(missing_ok=True)
