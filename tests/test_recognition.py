"""Cutting recordings into windows, and putting their results together."""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from transcribed.errors import RecognitionFailed
from transcribed.recognition import (
    CTCResult,
    Model,
    Piece,
    Run,
    SpooledAudio,
    Window,
    WindowResult,
    Word,
    WordsResult,
    cut,
    decode,
    decode_pieces,
    decode_results,
    encode,
    encode_pieces,
    encode_results,
    stitch,
)


def ctc(*runs: Run) -> CTCResult:
    return CTCResult(0.02, "|", list(runs))


class CutTests(SynchronousTestCase):
    """:func:`cut`."""

    LENGTHS = (1, 399, 15999, 16000, 25.9, 26, 26.1, 30, 46, 49, 49.1, 60, 599.5, 3600, 7200)

    def test_everyFrameIsAnsweredForOnce(self) -> None:
        for rate in (8000, 11025, 16000, 44100, 48000):
            for seconds in self.LENGTHS:
                for core, context in ((20, 3), (24, 3), (5, 0)):
                    frames = int(seconds * rate)
                    windows = cut(frames, rate, core, context)
                    self.assertEqual([w.position for w in windows], list(range(len(windows))))
                    self.assertEqual(windows[0].core_start, 0)
                    self.assertEqual(windows[-1].core_stop, frames)
                    for one, next_ in pairwise(windows):
                        self.assertEqual(one.core_stop, next_.core_start)
                        self.assertLess(one.core_start, one.core_stop)

    def test_windowsStartOnWholeSecondsAndAreBounded(self) -> None:
        for rate in (8000, 11025, 44100):
            for seconds in self.LENGTHS:
                frames = int(seconds * rate)
                for w in cut(frames, rate, 20, 3):
                    self.assertEqual((w.start % rate, w.core_start % rate), (0, 0))
                    self.assertLessEqual(w.stop - w.start, 26 * rate)
                    self.assertLessEqual(w.start, w.core_start)
                    self.assertLessEqual(w.core_stop, w.stop)

    def test_contextWhereTheRecordingGoesOn(self) -> None:
        windows = cut(100 * 8000, 8000, 20, 3)
        self.assertGreater(len(windows), 2)
        for w in windows[1:]:
            self.assertEqual(w.core_start - w.start, 3 * 8000)
        for w in windows[:-1]:
            self.assertGreater(w.stop, w.core_stop)
            self.assertLessEqual(w.stop - w.core_stop, 3 * 8000)
        self.assertEqual(windows[-1].stop, windows[-1].core_stop)

    def test_shortRecordingsAreOneWindow(self) -> None:
        self.assertEqual(cut(26 * 8000, 8000, 20, 3), [Window(0, 0, 208000, 0, 208000)])
        self.assertEqual(len(cut(26 * 8000 + 1, 8000, 20, 3)), 2)

    def test_moreAudioChangesTheLastWindowOnly(self) -> None:
        """What is cut while a recording comes in is a prefix of what it is cut into in the end."""
        rate = 50
        for core, context in ((20, 3), (24, 3), (5, 0), (1, 1), (3, 7)):
            final: list[Window] = []
            ends = range((4 * core + 3 * context) * rate)
            for windows in (cut(frames, rate, core, context) for frames in ends):
                self.assertEqual(windows[:-1][: len(final)], final)
                self.assertLessEqual(len(windows[:-1]) - len(final), 1)
                final = windows[:-1]
            self.assertGreater(len(final), 2)

    def test_theLastWindowStaysTheLastUntilItIsTheLongest(self) -> None:
        """So it is known without cutting again when there is another one."""
        for core, context in ((20, 3), (5, 0)):
            for frames in range(1, 100 * 50, 7):
                last = cut(frames, 50, core, context)[-1]
                most = last.start + (core + 2 * context) * 50
                self.assertEqual(cut(most, 50, core, context)[-1].position, last.position)
                self.assertEqual(cut(most + 1, 50, core, context)[-2].position, last.position)

    def test_nothingIsOneEmptyWindow(self) -> None:
        self.assertEqual(cut(0, 8000, 20, 3), [Window(0, 0, 0, 0, 0)])


class StitchTests(SynchronousTestCase):
    """:func:`stitch`."""

    def test_runsBecomeWordsWithTimes(self) -> None:
        result = stitch(
            [
                ctc(
                    Run("h", 5, 2, 1.0),
                    Run("i", 7, 2, 0.5),
                    Run("|", 10, 1, 1.0),
                    Run("å", 50, 1, 1),
                )
            ]
        )
        self.assertEqual(result.text, "hi å")
        self.assertEqual(result.words, [Word("hi", 0.1, 0.18, 0.75), Word("å", 1.0, 1.02, 1.0)])

    def test_aRunAcrossACutIsOneToken(self) -> None:
        left = ctc(Run("h", 998, 1, 1.0), Run("e", 999, 1, 1.0))
        right = ctc(Run("e", 1000, 3, 0.6), Run("j", 1004, 1, 1.0))
        result = stitch([left, right])
        self.assertEqual(result.text, "hej")
        # (1 * 1.0 + 4 * 0.7 + 1 * 1.0) / 6, where 0.7 is the mean of "e" over its four frames.
        self.assertEqual(result.words, [Word("hej", 19.96, 20.1, 0.8)])

    def test_doubledLettersStayDoubled(self) -> None:
        """A blank between them, on either side of a cut or away from it, says that they are two."""
        within = ctc(Run("t", 1, 2, 1.0), Run("t", 4, 1, 1.0))
        self.assertEqual(stitch([within]).text, "tt")
        left, right = ctc(Run("t", 998, 1, 1.0)), ctc(Run("t", 1000, 1, 1.0))
        self.assertEqual(stitch([left, right]).text, "tt")

    def test_aWordAcrossACutIsOneWord(self) -> None:
        self.assertEqual(stitch([ctc(Run("h", 9, 1, 1)), ctc(Run("i", 12, 1, 1))]).text, "hi")

    def test_aDelimiterAcrossACutIsOneSpace(self) -> None:
        results = [ctc(Run("a", 1, 1, 1), Run("|", 9, 1, 1)), ctc(Run("|", 10, 1, 1))]
        self.assertEqual(stitch([*results, ctc(Run("b", 20, 1, 1))]).text, "a b")

    def test_wordsAreTakenInOrder(self) -> None:
        one, two = Word("Hej,", 0.1, 0.4, 0.9), Word("du.", 30.0, 30.2, 0.8)
        result = stitch([WordsResult([one]), WordsResult([]), WordsResult([two])])
        self.assertEqual((result.text, result.words), ("Hej, du.", [one, two]))

    def test_silenceIsNoText(self) -> None:
        for silent in ([], [ctc()], [WordsResult([])], [ctc(Run("|", 3, 1, 1.0))]):
            self.assertEqual(stitch(silent).text, "")


class EncodingTests(SynchronousTestCase):
    """:func:`encode` and :func:`decode`."""

    def test_roundTrip(self) -> None:
        results: list[WindowResult] = [
            ctc(Run("å", 1, 2, 0.5)),
            WordsResult([Word("å", 0.0, 1.0, 0.5)]),
        ]
        self.assertEqual(decode_results(encode_results(results)), results)
        audio = SpooledAudio("/spool/å", 44100, 2)
        pieces = [Piece(audio, window, "sv") for window in cut(100 * 44100, 44100, 20, 3)]
        self.assertEqual(decode_pieces(encode_pieces(pieces)), pieces)
        model = Model("n", "/p", "ctc", "d", 1, ("sv",), 20, 3, "careful")
        self.assertEqual(decode(Model, encode(model)), model)

    def test_aWindowOfRunsFitsIntoAnAMPValue(self) -> None:
        """The most that a window of 26 seconds, ten hours into a recording, can have to say."""
        runs = [Run("å", 50 * 36000 + i, 1, 0.1234) for i in range(26 * 50)]
        self.assertLess(len(encode_results([ctc(*runs)])), 65535)

    def test_rubbishRaises(self) -> None:
        for rubbish in (b"", b"[", b"\xff", b"{}", b'[{"type":"ctc"}]', b'[{"type":"x"}]', b"[1]"):
            self.assertRaises(RecognitionFailed, decode_results, rubbish)
            self.assertRaises(RecognitionFailed, decode_pieces, rubbish)
        self.assertRaises(RecognitionFailed, decode, Window, b'{"position":"a"}')
