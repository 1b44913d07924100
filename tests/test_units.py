"""The files for systemd: what the daemon's promises rest on, systemd's own checks, its sockets."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from tests.daemonprocess import DaemonProcess
from tests.rawclient import connect
from tests.speech import CHECKPOINT
from transcribed.service import DRAIN_SECONDS, SETTLE_SECONDS
from transcribed.tap import Options
from transcribed.work import Times

ETC = Path(__file__).parent.parent / "etc"


def directives(name: str) -> dict[str, list[str]]:
    """All that a unit sets: the values by key, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, value in re.findall(r"^(\w+)=(.*)$", (ETC / name).read_text(), re.MULTILINE):
        found[key].append(value)
    return found


def need(program: str) -> str:
    """The path of one of systemd's programs; skips the test where it is not installed."""
    path = shutil.which(program)
    if path is None:
        raise SkipTest(f"{program} is not installed")
    return path


def execute(*arguments: object) -> str:
    """Run a program that has to succeed; all that it says."""
    done = subprocess.run(
        list(map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "SYSTEMD_COLORS": "0", "SYSTEMD_EMOJI": "0", "SYSTEMD_PAGER": "cat"},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class ServiceTests(SynchronousTestCase):
    """etc/transcribed.service."""

    unit = directives("transcribed.service")

    def one(self, key: str) -> str:
        """The value of a key that is set once."""
        [value] = self.unit[key]
        return value

    def test_itsCommandLine(self) -> None:
        """What it is started with is understood, and what is kept is where systemd allows it."""
        program, *words = self.one("ExecStart").split()
        self.assertEqual(Path(program).name, "twistd")
        place = words.index("transcribed")
        self.assertEqual(words[:place], ["--nodaemon", "--pidfile="])
        own = words[place + 1 :]
        config = own.index("--config") + 1
        self.assertEqual(own[config], "/etc/transcribed/transcribed.toml")
        own[config] = str(ETC / "transcribed.toml")
        options = Options()
        options.parseOptions(own)
        state = Path("/var/lib", self.one("StateDirectory"))
        self.assertEqual(options.settings.state, state)
        self.assertEqual(self.one("WorkingDirectory"), str(state))
        self.assertEqual((self.one("StateDirectoryMode"), self.one("UMask")), ("0700", "0077"))
        for variable in self.unit["Environment"]:
            self.assertIn(f"/var/cache/{self.one('CacheDirectory')}", variable)

    def test_itMayStopInPeace(self) -> None:
        """Windows in work are finished: the workers are not told to stop, nor killed too early."""
        self.assertEqual(self.one("KillMode"), "mixed")
        self.assertNotIn("KillSignal", self.unit)
        times = Times()
        longest = DRAIN_SECONDS + SETTLE_SECONDS + times.terminate + times.kill
        self.assertGreaterEqual(float(self.one("TimeoutStopSec")), longest + 5)

    def test_itComesBack(self) -> None:
        """Nothing short of the daemon's own end ends the service, and then it is started again."""
        self.assertEqual(self.one("Type"), "exec")
        self.assertEqual(self.one("Restart"), "on-failure")
        self.assertEqual(self.one("OOMPolicy"), "continue")
        self.assertRegex(self.one("ExecReload"), r"kill -HUP \$MAINPID$")

    def test_enoughDescriptors(self) -> None:
        options = Options()
        options.parseOptions([])
        settings = options.settings
        needed = settings.max_connections + settings.max_uploads + 1000
        self.assertGreater(int(self.one("LimitNOFILE")), needed)

    def test_nothingOfItsMemoryOnDisk(self) -> None:
        self.assertEqual(self.one("LimitCORE"), "0")

    def test_whatItCannotDoWithout(self) -> None:
        """oneDNN makes code at run time; the cores and the memory are read from /proc."""
        for key in ("MemoryDenyWriteExecute", "ProcSubset", "PrivateNetwork"):
            self.assertNotIn(key, self.unit)
        families = self.one("RestrictAddressFamilies").split()
        self.assertEqual(families, ["AF_INET", "AF_INET6", "AF_UNIX"])

    def test_noPrivileges(self) -> None:
        for key in ("CapabilityBoundingSet", "AmbientCapabilities"):
            self.assertEqual(self.one(key), "")
        for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "PrivateUsers"):
            self.assertEqual(self.one(key), "yes")
        self.assertEqual(self.one("ProtectSystem"), "strict")
        self.assertEqual(
            self.unit["SystemCallFilter"], ["@system-service", "~@privileged @resources"]
        )


class VerdictTests(SynchronousTestCase):
    """What systemd says of the units, where one that knows all of them is installed."""

    def setUp(self) -> None:
        version = re.search(r"systemd (\d+)", execute(need("systemd-analyze"), "--version"))
        if version is None or int(version[1]) < 250:
            raise SkipTest("the units are for systemd 250 or newer")
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def units(self) -> list[Path]:
        """The units, with a program that is there."""
        copies = []
        for name in ("transcribed.service", "transcribed.socket"):
            copy = self.folder / name
            text = (ETC / name).read_text()
            text = re.sub(r"^(ExecStart|ExecReload)=\S+", r"\1=/bin/true", text, flags=re.M)
            copy.write_text(text)
            copies.append(copy)
        return copies

    def test_verify(self) -> None:
        self.assertEqual(execute(need("systemd-analyze"), "verify", *self.units()), "")

    def test_theCheckSees(self) -> None:
        analyze = need("systemd-analyze")
        unit = self.units()[0]
        unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=kindly"))
        self.assertIn("kindly", execute(analyze, "verify", unit))

    def test_security(self) -> None:
        """1.1 with systemd 252: what may be left is the network, /proc and code at run time."""
        said = execute(
            need("systemd-analyze"), "security", "--offline=true", "--no-pager", self.units()[0]
        )
        verdict = re.search(r"exposure level for transcribed.service: (\d+\.\d) (\w+)", said)
        assert verdict is not None, said
        self.assertLessEqual(float(verdict[1]), 1.5)
        self.assertIn(verdict[2], ("OK", "SAFE"))

    def test_usersAndDirectories(self) -> None:
        sysusers, tmpfiles = need("systemd-sysusers"), need("systemd-tmpfiles")
        if os.getuid():
            raise SkipTest("only root may make users, in another root too")
        root = f"--root={self.folder}"
        (self.folder / "etc/transcribed").mkdir(parents=True)
        key = self.folder / "etc/transcribed/key.pem"
        key.touch()
        key.chmod(0o644)
        execute(sysusers, root, ETC / "sysusers.conf")
        line = (self.folder / "etc/passwd").read_text()
        self.assertRegex(line, r"^transcribed:x:(\d+):\1:.*:/var/lib/transcribed:.*nologin\n$")
        group = int(line.split(":")[3])
        execute(tmpfiles, root, "--create", ETC / "tmpfiles.conf")
        for path, mode in (
            (key.parent, 0o40750),
            (key, 0o100640),
            (key.parent / "tokens", 0o100640),
        ):
            found = path.stat()
            self.assertEqual((found.st_mode, found.st_gid), (mode, group), path)


class _Activated:
    """A reactor whose child processes are given a socket, as systemd does it (sd_listen_fds(3))."""

    def __init__(self, port: socket.socket) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def spawnProcess(self, protocol: Any, program: str, args: list[str], env: Any) -> Any:
        [name] = directives("transcribed.socket")["FileDescriptorName"]
        launch = (
            "import os, sys\n"
            "os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        spawner: Any = reactor
        return spawner.spawnProcess(
            protocol,
            sys.executable,
            [sys.executable, "-c", launch, *args],
            env={**env, "LISTEN_FDS": "1", "LISTEN_FDNAMES": name},
            childFDs={0: "w", 1: "r", 2: "r", 3: self._port.fileno()},
        )


class ActivationTests(TestCase):
    """A real daemon on a socket that is not its own."""

    timeout = 120

    async def test_nobodyIsRefusedMeanwhile(self) -> None:
        """Who comes before the daemon, or between two of them, is answered all the same."""
        with socket.create_server(("127.0.0.1", 0)) as port:
            endpoint = f"tcp:127.0.0.1:{port.getsockname()[1]}"
            state = Path(self.mktemp())
            for _ in range(2):
                waiting = socket.create_connection(port.getsockname(), 30)
                self.addCleanup(waiting.close)
                waiting.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                daemon = DaemonProcess(
                    _Activated(port),
                    state,
                    *("--model", str(CHECKPOINT), "--workers", "1"),
                    *("--listen", "systemd:domain=INET:name=transcribed"),
                    listen=False,
                )
                self.addCleanup(daemon.signal, "KILL")
                await daemon.logged("listening on")
                client = await connect(reactor, endpoint)
                welcome = await client.ask(type="hello", party="anna")
                self.assertEqual(welcome["type"], "welcome")
                await daemon.signal("TERM")
                self.assertIn("stopped: ", daemon.log)
                self.assertTrue(waiting.recv(100).startswith(b"HTTP/1.1 200 "))
