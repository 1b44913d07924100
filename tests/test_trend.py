"""Whether a series of samples grows."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.trend import trend

TIMES = [5.0 * n for n in range(97)]


class TrendTests(SynchronousTestCase):
    """Eight minutes, a sample every five seconds, some 50,000 kB."""

    def noisy(self, growth: float, seed: int = 1) -> list[float]:
        """Samples with noise, and so much more a minute."""
        rng = random.Random(seed)
        return [50_000 + growth * at / 60 + rng.gauss(0, 200) for at in TIMES]

    def test_constant(self) -> None:
        found = trend(TIMES, [50_000.0] * len(TIMES))
        self.assertEqual((found.slope, found.noise), (0.0, 0.0))
        self.assertTrue(found.flat)

    def test_line(self) -> None:
        """The slope is per minute."""
        found = trend(TIMES, [50_000 + 6 * at for at in TIMES])
        self.assertAlmostEqual(found.slope, 360.0)
        self.assertAlmostEqual(found.first, 50_000 + 6 * 27.5)
        self.assertAlmostEqual(found.last, 50_000 + 6 * 450)
        self.assertFalse(found.flat)

    def test_noise(self) -> None:
        """Noise alone is flat, mostly; what grows among it is not."""
        flat = sum(trend(TIMES, self.noisy(0, seed)).flat for seed in range(100))
        self.assertGreaterEqual(flat, 95)
        found = trend(TIMES, self.noisy(300))
        self.assertLess(abs(found.slope - 300), 3 * found.noise)
        self.assertFalse(found.flat)

    def test_step(self) -> None:
        """What is taken once, late, is more than there was: too much is too much."""
        self.assertFalse(trend(TIMES, [50_000.0 if at < 420 else 55_000.0 for at in TIMES]).flat)

    def test_alike(self) -> None:
        """Samples that go along with each other say less than as many that do not."""
        slow = [50_000.0 + (n // 6) % 2 for n in range(len(TIMES))]
        quick = [50_000.0 + n % 2 for n in range(len(TIMES))]
        self.assertGreater(trend(TIMES, slow).noise, 2 * trend(TIMES, quick).noise)

    def test_short(self) -> None:
        """Of a minute, the first quarter and the last one."""
        times = [5.0 * n for n in range(13)]
        found = trend(times, times)
        self.assertEqual((found.first, found.last), (5.0, 52.5))
