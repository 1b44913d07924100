"""Decoding of files that the tests make themselves."""

from __future__ import annotations

import io
import os
import sys
import wave
from pathlib import Path
from unittest import mock

import av
import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from transcribed.audiofile import AudioFile, UnreadableFile


def tone(rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """440 Hz at a quarter of full scale, the channels alike: int16, (frames, channels)."""
    time = np.arange(int(rate * seconds)) / rate
    mono = (np.sin(2 * np.pi * 440 * time) * 8000).astype("<i2")
    return np.repeat(mono[:, None], channels, axis=1)


def write_wav(path: str, samples: np.ndarray, rate: int) -> None:
    with wave.open(path, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def encode(path: str, codec: str, rate: int, layout: str) -> None:
    channels = len(av.AudioLayout(layout).channels)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        samples = tone(rate, channels=channels).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, "s16", layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def loudest(samples: np.ndarray, rate: int) -> float:
    """The frequency, Hz, with most power."""
    power = np.abs(np.fft.rfft(samples.astype(float)))
    return float(np.argmax(power) * rate / len(samples))


class TestDecoding(SynchronousTestCase):
    """What comes out of good files."""

    def path(self, name: str) -> str:
        os.makedirs(folder := self.mktemp())
        return os.path.join(folder, name)

    def assertClose(self, found: float | None, expected: float, by: float) -> None:
        # trial's assertAlmostEqual takes a delta and does not heed it.
        assert found is not None
        self.assertLessEqual(abs(found - expected), by)

    def read(self, audio: AudioFile) -> np.ndarray:
        return np.frombuffer(b"".join(audio.samples()), "<i2").reshape(-1, audio.channels)

    def test_wav_unchanged(self) -> None:
        for rate, channels in ((8000, 1), (16000, 2), (48000, 1), (11025, 8)):
            path = self.path("a.wav")
            made = tone(rate, 1.5, channels)
            write_wav(path, made, rate)
            audio = AudioFile(path)
            self.assertEqual((audio.rate, audio.channels), (rate, channels))
            self.assertEqual(audio.size, made.nbytes)
            self.assertClose(audio.seconds, 1.5, 1e-3)
            np.testing.assert_array_equal(self.read(audio), made)

    def test_formats(self) -> None:
        for name, codec, rate, layout in (
            ("a.flac", "flac", 44100, "stereo"),
            ("a.ogg", "libopus", 48000, "mono"),
            ("a.mp3", "libmp3lame", 22050, "mono"),
            ("a.m4a", "aac", 44100, "stereo"),
            ("a.webm", "libopus", 48000, "stereo"),
            ("deep.wav", "pcm_f32le", 32000, "5.1"),
        ):
            path = self.path(name)
            encode(path, codec, rate, layout)
            audio = AudioFile(path)
            self.assertEqual(audio.rate, rate, name)
            self.assertEqual(audio.channels, len(av.AudioLayout(layout).channels), name)
            samples = self.read(audio)
            self.assertClose(len(samples) / rate, 1.0, 0.1)
            self.assertClose(loudest(samples[:, 0], rate), 440, 3)
            self.assertEqual(audio.damaged, 0)

    def test_rates_outside(self) -> None:
        for rate, expected in ((4000, 8000), (96000, 48000)):
            path = self.path("a.wav")
            write_wav(path, tone(rate), rate)
            audio = AudioFile(path)
            self.assertEqual(audio.rate, expected)
            samples = self.read(audio)
            self.assertClose(len(samples), expected, expected // 100)
            self.assertClose(loudest(samples[:, 0], expected), 440, 3)

    def test_too_many_channels(self) -> None:
        path = self.path("a.wav")
        made = np.tile(np.arange(0, 1000, 100, dtype="<i2"), (16000, 1))
        write_wav(path, made, 16000)
        audio = AudioFile(path)
        self.assertEqual(audio.channels, 1)
        np.testing.assert_array_equal(self.read(audio), np.full((16000, 1), 450))

    def test_as_often_as_wanted(self) -> None:
        """And in blocks, so that a long file is never in memory."""
        path = self.path("a.wav")
        write_wav(path, tone(16000, 20.0), 16000)
        audio = AudioFile(path)
        blocks = list(audio.samples())
        self.assertGreater(len(blocks), 5)
        self.assertLess(max(map(len, blocks)), 128 * 1024)
        self.assertEqual(blocks, list(audio.samples()))

    def test_damage_is_skipped_and_counted(self) -> None:
        path = self.path("a.mp3")
        encode(path, "libmp3lame", 22050, "mono")
        good = Path(path).read_bytes()
        middle = len(good) // 2
        Path(path).write_bytes(good[:middle] + bytes(500) + good[middle:])
        audio = AudioFile(path)
        self.assertGreater(len(self.read(audio)), 20000)
        self.assertGreater(audio.damaged, 0)

    def test_standard_input(self) -> None:
        path = self.path("a.wav")
        write_wav(path, tone(8000), 8000)
        with mock.patch.object(sys, "stdin", mock.Mock(buffer=io.BytesIO(Path(path).read_bytes()))):
            audio = AudioFile("-")
        np.testing.assert_array_equal(self.read(audio), tone(8000))
        np.testing.assert_array_equal(self.read(audio), tone(8000))

    def test_pipe(self) -> None:
        """What the shell makes of <(…) can be read once only."""
        path = self.path("a.wav")
        write_wav(path, tone(8000, 0.1), 8000)
        reading, writing = os.pipe()
        os.write(writing, Path(path).read_bytes())
        os.close(writing)
        audio = AudioFile(f"/dev/fd/{reading}")
        os.close(reading)
        np.testing.assert_array_equal(self.read(audio), tone(8000, 0.1))


class TestUnreadable(SynchronousTestCase):
    """One sentence for each thing that can be wrong."""

    def complaint(self, path: str) -> str:
        return str(self.assertRaises(UnreadableFile, AudioFile, path))

    def test_what_is_wrong(self) -> None:
        os.makedirs(folder := self.mktemp())
        junk, empty = os.path.join(folder, "junk"), os.path.join(folder, "empty")
        Path(junk).write_bytes(b"hello world\n" * 1000)
        Path(empty).touch()
        self.assertEqual(self.complaint("/nope"), "/nope: there is no such file")
        self.assertEqual(self.complaint(folder), f"{folder}: it is a directory")
        self.assertEqual(self.complaint(junk), f"{junk}: it is of no known audio format")
        self.assertEqual(self.complaint(empty), f"{empty}: it is empty")
        self.assertIn("it cannot be read", self.complaint("a\0b"))

    def test_no_audio(self) -> None:
        path = self.mktemp() + ".srt"
        Path(path).write_text("1\n00:00:00,000 --> 00:00:01,000\nhej\n")
        self.assertEqual(self.complaint(path), f"{path}: there is no audio in it")

    def test_nothing_decodable(self) -> None:
        path = self.mktemp() + ".wav"
        write_wav(path, tone(8000, 0.0), 8000)
        self.assertEqual(self.complaint(path), f"{path}: no audio could be decoded from it")

    def test_gone_meanwhile(self) -> None:
        path = self.mktemp() + ".wav"
        write_wav(path, tone(8000), 8000)
        audio = AudioFile(path)
        os.unlink(path)
        with self.assertRaises(UnreadableFile):
            next(audio.samples())
