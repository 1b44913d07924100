"""From the probabilities of a CTC network's frames to runs of tokens.

Connectionist temporal classification (Graves et al. 2006): the network gives, for every frame, the
probabilities of the tokens and of a blank. Greedy decoding takes the most probable one of each
frame, joins equal neighbours and drops the blanks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import numpy.typing

from transcribed.recognition import CTCResult, Run
from transcribed.speech import Span
from transcribed.speech.audio import RATE

Ids = numpy.typing.NDArray[numpy.int64]
Probabilities = numpy.typing.NDArray[numpy.float32]


@dataclass(frozen=True)
class Alphabet:
    """What the outputs of a network stand for.

    :ivar tokens: characters by output; None for those that are left out, as the blank is.
    :ivar delimiter: the token between words.
    """

    tokens: list[str | None]
    delimiter: str


def heard(
    alphabet: Alphabet, ids: Ids, probabilities: Probabilities, span: Span, stride: int
) -> CTCResult:
    """The result of a window's core.

    :param ids: the most probable output of each frame, shape (frames,).
    :param probabilities: its probability, shape (frames,).
    :param stride: samples from one frame to the next.
    """
    first = span.start * RATE // stride
    core = [j for j in range(len(ids)) if span.answers_for((first + j) * stride / RATE)]
    runs: list[Run] = []
    if core:
        kept = slice(core[0], core[-1] + 1)
        runs = _runs(alphabet, ids[kept], probabilities[kept], first + core[0])
    return CTCResult(stride / RATE, alphabet.delimiter, runs)


def _runs(alphabet: Alphabet, ids: Ids, probabilities: Probabilities, first: int) -> list[Run]:
    """The runs of equal `ids`, of which the first is the recording's frame `first`."""
    starts = [0, *(numpy.flatnonzero(numpy.diff(ids)) + 1).tolist()]
    runs = []
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        token = alphabet.tokens[ids[start]]
        if token is not None:
            # Rounded: a window's runs must fit into one AMP value, as JSON.
            confidence = round(float(probabilities[start:stop].mean()), 4)
            runs.append(Run(token, first + start, stop - start, confidence))
    return runs
