"""A window's samples from a spooled recording, as recognizers want them: mono float32, 16 kHz."""

from __future__ import annotations

import numpy
import numpy.typing
import soxr

from transcribed.errors import RecognitionFailed

RATE = 16000
"""Hz that every recognizer here works at."""

Samples = numpy.typing.NDArray[numpy.float32]


def read(path: str, rate: int, channels: int, start: int, stop: int) -> Samples:
    """Frames ``start <= frame < stop`` of the spooled audio in `path`, shape (samples,), -1 to 1.

    The file holds interleaved little-endian int16 of shape (frames, channels) at `rate` Hz, 8000 to
    48000. Channels are averaged. The answer has exactly ``round((stop - start) * 16000 / rate)``
    samples, so that CTC frames of all windows that start on whole seconds lie on one grid. What the
    resampler cannot know beyond the piece's ends lies in the window's context.

    :raises RecognitionFailed: when the file is not there or ends too early.
    """
    try:
        pcm = numpy.fromfile(
            path, "<i2", count=(stop - start) * channels, offset=start * channels * 2
        )
    except OSError as e:
        raise RecognitionFailed("the recording cannot be read from the spool") from e
    if len(pcm) != (stop - start) * channels:
        raise RecognitionFailed("the recording in the spool is shorter than it should be")
    mono = pcm.reshape(-1, channels).mean(axis=1, dtype=numpy.float32) / numpy.float32(32768)
    return resample(mono, rate)


def resample(samples: Samples, rate: int) -> Samples:
    """`samples` at `rate` Hz as ``round(len(samples) * 16000 / rate)`` samples at 16 kHz."""
    if rate == RATE or not len(samples):
        return samples
    wanted = (2 * len(samples) * RATE + rate) // (2 * rate)
    resampled: Samples = soxr.resample(samples, rate, RATE)
    if len(resampled) >= wanted:
        return resampled[:wanted]
    return numpy.pad(resampled, (0, wanted - len(resampled)))
