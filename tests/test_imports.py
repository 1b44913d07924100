"""What importing the parent's modules must not bring along; in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent


class ImportTests(SynchronousTestCase):
    """Each runs a fresh interpreter on the tree."""

    def loaded(self, program: str, *names: str) -> list[str]:
        """Those of the modules `names`, or in them, that `program` has loaded."""
        script = f"import sys\n{program}\nprint('\\n'.join(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-B", "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        modules = done.stdout.split()
        self.assertGreater(len(modules), 20)
        return sorted({n for n in names for m in modules if m == n or m.startswith(n + ".")})

    def test_theHelperSees(self) -> None:
        program = "import twisted.internet.reactor, json.decoder"
        names = ("json", "twisted.internet.reactor", "torch")
        self.assertEqual(self.loaded(program, *names), ["json", "twisted.internet.reactor"])

    def test_tapAndPluginInstallNoReactor(self) -> None:
        program = (
            "import transcribed.tap, twisted.plugins.transcribed_plugin as plugin\n"
            "assert plugin.transcribed.tapname == 'transcribed'"
        )
        self.assertEqual(self.loaded(program, "twisted.internet.reactor"), [])

    def test_parsingOptionsInstallsNoReactor(self) -> None:
        program = (
            "from transcribed.tap import Options\n"
            "options = Options()\n"
            "options.parseOptions(['--ttl', '5', '--listen', 'unix:/run/t'])\n"
            "assert options.settings.ttl == 5"
        )
        self.assertEqual(self.loaded(program, "twisted.internet.reactor"), [])

    def test_parentNeedsNoMachineLearning(self) -> None:
        program = (
            "import transcribed.service, transcribed.tap, transcribed.client, transcribed.cli\n"
            "assert transcribed.service.make_daemon and transcribed.client.Client"
        )
        heavy = ("torch", "numpy", "transformers", "ctranslate2", "faster_whisper")
        self.assertEqual(self.loaded(program, *heavy), [])
