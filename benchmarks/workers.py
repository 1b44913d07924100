"""Workers x threads: what each way to share out the cores gives, on this machine.

``python -m benchmarks.workers [MODEL ...]`` with a directory, a name on the Hub, ``embedded``, or
``large``, which stands for a wav2vec2-large with seeded weights: as fast as the mission's model,
where that is not at hand. For each split it starts the real pool and prints

- audio seconds transcribed a second, with windows of 20 s always waiting,
- seconds until the text of a 5 s message on an otherwise idle pool, and
- MiB of memory of all workers together (PSS: pages that they share counted once).

The splits are measured in turns, `--rounds` times, and the medians printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from tests.speech import RATE, recording
from transcribed.cores import available_cores
from transcribed.interfaces import SpooledAudio
from transcribed.pool import RecognizerPool
from transcribed.recognition import Window

WINDOW_SECONDS = 20
MESSAGE_SECONDS = 5
WINDOWS_A_WORKER = 2


def seeded_large(folder: Path) -> Path:
    """A checkpoint of the shape of wav2vec2-large (voxrex, XLS-R, MMS), its weights from a seed."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
    )

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyzåäö'-"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    torch.manual_seed(1)
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(letters),
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True).save_pretrained(folder)
    return folder


def proportional_mib(pids: list[int]) -> float:
    """The processes' proportional set size."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def children() -> list[int]:
    """The process ids of this process's children."""
    text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split()]


async def measure(
    reactor: Any, model: str, workers: int, threads: int, audio: SpooledAudio, cache: Path
) -> tuple[float, float, float]:
    """Audio seconds a second, seconds for a message, MiB of the workers."""
    pool = RecognizerPool(model, str(cache), workers, threads, "sv", reactor)
    waiting: list[Deferred[None]] = []

    def free() -> None:
        while waiting and pool.idle and pool.status().ready == workers:
            waiting.pop().callback(None)

    async def transcribe(seconds: int, times: int = 1) -> None:
        for _ in range(times):
            turn: Deferred[None] = Deferred()
            waiting.append(turn)
            # Not at once: in the middle of an answer its worker is not idle yet.
            reactor.callLater(0, free)
            await turn
            await pool.transcribe(audio, Window(0, 0, seconds * RATE, 0, seconds * RATE), "sv")

    async def at_once(seconds: int, times: int) -> float:
        started = time.monotonic()
        running = [Deferred.fromCoroutine(transcribe(seconds, times)) for _ in range(workers)]
        await gatherResults(running)
        return time.monotonic() - started

    pool.whenFree = free
    pool.start()
    # The first windows pay for what is set up lazily.
    await at_once(MESSAGE_SECONDS, 2)
    started = time.monotonic()
    await transcribe(MESSAGE_SECONDS)
    latency = time.monotonic() - started
    busy = await at_once(WINDOW_SECONDS, WINDOWS_A_WORKER)
    rate = workers * WINDOWS_A_WORKER * WINDOW_SECONDS / busy
    memory = proportional_mib(children())
    await pool.stop()
    return rate, latency, memory


async def run(reactor: Any, models: list[str], rounds: int) -> None:
    """Measure and print."""
    cores = available_cores()
    splits = [(w, cores // w) for w in range(1, cores + 1) if cores % w == 0]
    splits += [(1, 1)] if cores > 1 else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples, _ = recording(WINDOW_SECONDS)
        path = folder / "audio"
        samples[: WINDOW_SECONDS * RATE].astype(numpy.dtype("<i2")).tofile(path)
        audio = SpooledAudio(str(path), RATE, 1)
        print(f"{cores} cores; {rounds} rounds, medians")
        print(
            f"{'model':<12} {'workers x threads':>18} {'x real time':>12} {'5 s in':>8} {'MiB':>7}"
        )
        for model in models:
            place = str(seeded_large(folder / "large")) if model == "large" else model
            found: dict[tuple[int, int], list[tuple[float, float, float]]] = {s: [] for s in splits}
            for _ in range(rounds):
                for split in splits:
                    found[split].append(await measure(reactor, place, *split, audio, folder))
            for (workers, threads), measured in found.items():
                rate, latency, memory = (statistics.median(m) for m in zip(*measured, strict=True))
                print(
                    f"{model[-12:]:<12} {workers:>9} x {threads:<6} {rate:>12.1f} "
                    f"{latency:>7.2f}s {memory:>7.0f}",
                    flush=True,
                )


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["embedded", "large"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, options.models, options.rounds)))


if __name__ == "__main__":
    main()
