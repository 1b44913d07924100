"""What an operator can set, on the command line and in a file, at each option's edges."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from transcribed.addresses import is_loopback
from transcribed.settings import OPTIONS, Settings
from transcribed.tap import Options
from transcribed.wire import MAX_TTL


class SettingsTestCase(SynchronousTestCase):
    """Parses command lines and files."""

    def parse(self, *arguments: str, file: str | None = None) -> Settings:
        """What is set by `arguments`, and by a file with the text `file`."""
        options = Options()
        if file is not None:
            arguments = ("--config", self.write(file.encode()), *arguments)
        options.parseOptions(list(arguments))
        return options.settings

    def write(self, content: bytes) -> str:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return str(path)

    def assertRefused(self, *arguments: str, says: tuple[str, ...], file: str | None = None) -> str:
        """It is refused in one line that contains each of `says`."""
        error = self.assertRaises(UsageError, self.parse, *arguments, file=file)
        for each in says:
            self.assertIn(each, str(error))
        return str(error)

    def assertFlagRefused(self, key: str, value: str, *allowed: str) -> None:
        """The flag is refused, naming itself, the value, and what is allowed."""
        says = (f"--{key} cannot be {value or 'empty'}: it must be ", *allowed)
        self.assertRefused(f"--{key}={value}", says=says)

    def assertInFileRefused(self, key: str, toml: str, *says: str) -> None:
        """The file is refused, naming the key, itself, and what is allowed."""
        error = self.assertRefused(file=f"{key} = {toml}\n", says=(f"{key} in ", *says))
        self.assertIn("it must be ", error)


class DefaultsTests(SettingsTestCase):
    """With nothing set."""

    def test_defaults(self) -> None:
        self.assertEqual(
            self.parse(),
            Settings.of(
                listen=("tcp:6000:interface=127.0.0.1",),
                state=Path.cwd() / "var",
                model="auto",
                dtype="auto",
                workers=None,
                threads=None,
                ttl=86400.0,
                language="sv",
                max_seconds=7200.0,
                max_queue=10_000,
            ),
        )

    def test_emptyFile(self) -> None:
        self.assertEqual(self.parse(file=""), self.parse())

    def test_helpNamesEveryOptionAndItsDefault(self) -> None:
        usage = Options().getUsage(width=1000)
        for option in OPTIONS:
            if option.default is False:
                self.assertIn(f"--{option.key} ", usage)
                continue
            self.assertIn(f"--{option.key}=", usage)
            default = option.default[0] if option.key == "listen" else option.default
            if default != []:
                self.assertIn(f"[default: {default}]", usage)
        self.assertIn("--config=", usage)


class SourceTests(SettingsTestCase):
    """Flags, file, and which wins."""

    FILE = """
        listen = ["tcp:7000:interface=127.0.0.1", "unix:/t:mode=600.sock"]
        state = "/var/lib/t"
        model = "org/name"
        dtype = "bfloat16"
        workers = 3
        threads = "auto"
        ttl = 60.5
        language = "en"
        max-seconds = 600
        max-queue = 7
    """
    FROM_FILE = Settings.of(
        listen=("tcp:7000:interface=127.0.0.1", "unix:/t:mode=600.sock"),
        state=Path("/var/lib/t"),
        model="org/name",
        dtype="bfloat16",
        workers=3,
        threads=None,
        ttl=60.5,
        language="en",
        max_seconds=600.0,
        max_queue=7,
    )
    FLAGS = (
        *("--listen", "tcp6:8000:interface=\\:\\:1", "--state", "/srv/t", "--model", "embedded"),
        *(
            "--dtype",
            "int8",
            "--workers",
            "auto",
            "--threads",
            "2",
            "--ttl",
            "1.5",
            "--language",
            "nb",
        ),
        *("--max-seconds", "30", "--max-queue", "1"),
    )
    FROM_FLAGS = Settings.of(
        listen=("tcp6:8000:interface=\\:\\:1",),
        state=Path("/srv/t"),
        model="embedded",
        dtype="int8",
        workers=None,
        threads=2,
        ttl=1.5,
        language="nb",
        max_seconds=30.0,
        max_queue=1,
    )

    def test_file(self) -> None:
        self.assertEqual(self.parse(file=self.FILE), self.FROM_FILE)

    def test_flags(self) -> None:
        self.assertEqual(self.parse(*self.FLAGS), self.FROM_FLAGS)

    def test_flagsWinOverTheFile(self) -> None:
        self.assertEqual(self.parse(*self.FLAGS, file=self.FILE), self.FROM_FLAGS)

    def test_flagsThatAreTheDefaultsWinToo(self) -> None:
        settings = self.parse("--ttl=86400", "--workers=auto", file=self.FILE)
        self.assertEqual((settings.ttl, settings.workers), (86400.0, None))
        self.assertEqual(settings.model, "org/name")

    def test_oneFlagLeavesTheRestToTheFile(self) -> None:
        settings = self.parse("--max-queue", "9", file=self.FILE)
        self.assertEqual((settings.max_queue, settings.max_seconds), (9, 600.0))

    def test_wrongValueInTheFileUnderAGoodFlag(self) -> None:
        self.assertEqual(self.parse("--ttl=5", file='ttl = "rubbish"').ttl, 5.0)

    def test_shortFlagForTheFile(self) -> None:
        options = Options()
        options.parseOptions(["-c", self.write(b"ttl = 5")])
        self.assertEqual(options.settings.ttl, 5.0)

    def test_listenRepeated(self) -> None:
        first, second = "tcp:1:interface=127.0.0.1", "unix:/t:mode=600"
        self.assertEqual(self.parse("--listen", first, "--listen", second).listen, (first, second))
        # They replace what the file says, and are not added to it.
        self.assertEqual(self.parse("--listen", first, file=self.FILE).listen, (first,))

    def test_listenAsOneStringInTheFile(self) -> None:
        self.assertEqual(
            self.parse(file='listen = "unix:/t:mode=600"').listen, ("unix:/t:mode=600",)
        )

    def test_optionsAreNotShared(self) -> None:
        self.parse("--listen", "unix:/t:mode=600")
        self.assertEqual(self.parse().listen, ("tcp:6000:interface=127.0.0.1",))

    def test_nothingButOptions(self) -> None:
        self.assertRaises(UsageError, self.parse, "extra")
        self.assertRaises(UsageError, self.parse, "--no-such-flag", "1")


class FileTests(SettingsTestCase):
    """Files that are none."""

    def test_unreadable(self) -> None:
        missing = self.mktemp()
        self.assertRefused(
            "--config", missing, says=(f"--config cannot be {missing}: No such file",)
        )
        directory = Path(self.mktemp())
        directory.mkdir()
        self.assertRefused(
            "--config", str(directory), says=(f"--config cannot be {directory}: Is a directory",)
        )
        self.assertRefused("--config", "", says=("--config cannot be empty: No such file",))

    def test_notTOML(self) -> None:
        for content in (b"ttl: 5", b"ttl = ", b"ttl = 5\nttl = 6", b"\xff\xfe", b"[", b"ttl 5"):
            path = self.write(content)
            self.assertRefused(
                "--config", path, says=(f"--config cannot be {path}: it must be TOML",)
            )

    def test_unknownKey(self) -> None:
        for key in ("max_seconds", "TTL", "config", "port", "transcribed"):
            path = self.write(f'{key} = "1"'.encode())
            error = self.assertRefused("--config", path, says=(path, f"the key {key}:"))
            for option in OPTIONS:
                self.assertIn(option.key, error)

    def test_table(self) -> None:
        self.assertRefused(file="[transcribed]\nttl = 5\n", says=("the key transcribed:",))

    def test_wrongTypes(self) -> None:
        self.assertInFileRefused("listen", "6000", "an endpoint, or a list of them")
        self.assertInFileRefused("listen", "[6000]", "a text")
        self.assertInFileRefused("listen", '[["unix:/a"]]', "a text")
        self.assertInFileRefused("listen", "[]", "at least one endpoint")
        self.assertInFileRefused("listen", "true", "an endpoint")
        self.assertInFileRefused("listen", "{ a = 1 }", "unix:PATH")
        for key in ("state", "model"):
            for toml in ("5", "true", '["a"]', "1.5", "1979-05-27", "{ a = 1 }", '""'):
                self.assertInFileRefused(key, toml, "a text")
        for key in ("workers", "threads"):
            for toml in ("true", "1.0", "2.5", "[1]", '""', "0", "1025", "1979-05-27"):
                self.assertInFileRefused(key, toml, "auto, or a whole number from 1 to 1024")
        for key in ("ttl", "max-seconds"):
            for toml in ("true", "[1]", '""', "0", "-1", "nan", "inf", "-inf", "00:10:00"):
                self.assertInFileRefused(key, toml, "a number of seconds over 0")
        for toml in ("true", "1.0", "[1]", '""', "0", "-1", "1000001", "nan"):
            self.assertInFileRefused("max-queue", toml, "a whole number from 1 to 1000000")
        for toml in ("5", "true", '["sv"]', '""', '"s v"'):
            self.assertInFileRefused("language", toml, "a language")


class ValueTests(SettingsTestCase):
    """Each option at its edges, as flags."""

    def test_dtype(self) -> None:
        self.assertEqual(self.parse("--dtype=float32").dtype, "float32")
        for value in ("float16", "FLOAT32", ""):
            self.assertFlagRefused("dtype", value, "auto", "float32", "bfloat16", "int8")
        self.assertInFileRefused("dtype", "32", "auto")

    def test_workersAndThreads(self) -> None:
        for key in ("workers", "threads"):
            for text, expected in (("auto", None), ("1", 1), ("1024", 1024)):
                self.assertEqual(getattr(self.parse(f"--{key}={text}"), key), expected)
            for wrong in ("0", "1025", "-1", "1.0", "two", "", "Auto", "nan", "9" * 5000):
                self.assertFlagRefused(key, wrong, "auto, or a whole number from 1 to 1024")

    def test_ttl(self) -> None:
        for text, expected in (("0.001", 0.001), ("3600", 3600.0), (str(MAX_TTL), MAX_TTL)):
            self.assertEqual(self.parse(f"--ttl={text}").ttl, expected)
        for wrong in ("0", "-1", str(MAX_TTL + 1), "nan", "inf", "1e400", "1h", "", "1,5"):
            self.assertFlagRefused("ttl", wrong, "seconds over 0", f"{MAX_TTL:.0f}")

    def test_maxSeconds(self) -> None:
        for text, expected in (("0.5", 0.5), ("86400", 86400.0)):
            self.assertEqual(self.parse(f"--max-seconds={text}").max_seconds, expected)
        for wrong in ("0", "-1", "86400.1", "nan", "inf", "2h", ""):
            self.assertFlagRefused("max-seconds", wrong, "seconds over 0", "86400")

    def test_maxQueue(self) -> None:
        for number in (1, 1_000_000):
            self.assertEqual(self.parse(f"--max-queue={number}").max_queue, number)
        for wrong in ("0", "1000001", "-1", "1.5", "many", ""):
            self.assertFlagRefused("max-queue", wrong, "a whole number from 1 to 1000000")

    def test_language(self) -> None:
        for language in ("sv", "zh-Hans", "pt_BR", "x" * 32):
            self.assertEqual(self.parse(f"--language={language}").language, language)
        for wrong in ("", "x" * 33, "s v", "sv\n", "å", "../sv"):
            self.assertFlagRefused("language", wrong, "a language", "such as sv")

    def test_model(self) -> None:
        for model in ("auto", "embedded", "org/name", "name"):
            self.assertEqual(self.parse(f"--model={model}").model, model)
        self.assertFlagRefused("model", "", "a text that is not empty")

    def test_modelInADirectory(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        path = str(directory.absolute())
        self.assertEqual(self.parse(f"--model={path}").model, path)
        # Absolute, as a daemon changes its directory.
        self.assertEqual(self.parse(f"--model=./{directory}").model, path)
        for wrong in ("./no-such", f"{path}/no-such", __file__):
            self.assertFlagRefused("model", wrong, "a directory that is there", "auto, embedded")
        self.assertFlagRefused("model", "~nobody-of-that-name/m", "a path")

    def test_state(self) -> None:
        self.assertEqual(self.parse("--state=a/b").state, Path.cwd() / "a/b")
        self.assertEqual(self.parse("--state=/a/b").state, Path("/a/b"))
        self.patch(os, "environ", {**os.environ, "HOME": "/home/anna"})
        self.assertEqual(self.parse("--state=~/t").state, Path("/home/anna/t"))
        self.assertEqual(self.parse(file='state = "~/t"').state, Path("/home/anna/t"))
        self.assertFlagRefused("state", "", "a text that is not empty")

    def test_stateThatIsNoPath(self) -> None:
        self.assertFlagRefused("state", "~nobody-of-that-name/t", "a path")
        self.assertInFileRefused("state", '"a\\u0000b"', "a path")


class ListenTests(SettingsTestCase):
    """Where it may listen: only where nobody outside this machine reaches it."""

    def test_allowed(self) -> None:
        for endpoint in (
            "tcp:6000:interface=127.0.0.1",
            "tcp:6000:interface=127.0.0.2",
            "tcp:6000:interface=127.255.255.254",
            "tcp:6000:interface=localhost",
            "tcp:6000:127.0.0.1",
            "tcp:port=6000:interface=127.0.0.1",
            "tcp:interface=127.0.0.1:port=6000:backlog=10",
            "tcp:65535:interface=127.0.0.1",
            "tcp6:6000:interface=\\:\\:1",
            "tcp:6000:interface=\\:\\:1",
            "unix:address=/run/transcribed.sock:mode=600",
            "systemd:domain=UNIX:index=0",
            "systemd:UNIX:name=transcribed",
        ):
            self.assertEqual(self.parse("--listen", endpoint).listen, (endpoint,))

    def test_aUnixSocketIsNotForEverybody(self) -> None:
        self.assertEqual(self.parse("--listen", "unix:/t").listen, ("unix:/t:mode=660",))

    def test_addressesThatOthersReach(self) -> None:
        for endpoint in (
            "tcp:6000",
            "tcp:port=6000",
            "tcp:6000:interface=",
            "tcp:6000:interface=0.0.0.0",
            "tcp:6000:0.0.0.0",
            "tcp:6000:interface=192.168.1.1",
            "tcp:6000:interface=8.8.8.8",
            "tcp:6000:interface=example.com",
            "tcp:6000:interface=localhost.example.com",
            "tcp:6000:interface=127.0.0.1.example.com",
            "tcp6:6000:interface=\\:\\:",
            "tcp6:6000:interface=::1",
            "tcp6:6000:interface=2001\\:db8\\:\\:1",
            "tcp:6000:interface=127.0.0.1:interface=0.0.0.0",
        ):
            self.assertRefused(
                f"--listen={endpoint}", says=(endpoint, "loopback", "no credentials", "--auth")
            )
            clear = (f"--listen={endpoint}", "--auth=tokens:/x")
            self.assertRefused(*clear, says=(endpoint, "in the clear", "ssl:", "--insecure"))
            self.assertEqual(self.parse(*clear, "--insecure").listen, (endpoint,))

    def test_TLS(self) -> None:
        endpoint = "ssl:6000:privateKey=/k.pem:certKey=/c.pem"
        self.assertRefused(f"--listen={endpoint}", says=("no credentials",))
        settings = self.parse(f"--listen={endpoint}", "--auth=tokens:/x")
        self.assertEqual(settings.listen, (endpoint,))
        local = f"{endpoint}:interface=127.0.0.1"
        self.assertEqual(self.parse(f"--listen={local}").listen, (local,))
        for wrong in ("ssl:6000", "ssl:6000:certKey=/c.pem", f"{endpoint}:sslmethod=SSLv3_METHOD"):
            self.assertFlagRefused("listen", wrong, "ssl:PORT:privateKey=FILE:certKey=FILE")

    def test_othersKinds(self) -> None:
        for endpoint in (
            "tls:6000",
            "6000",
            "127.0.0.1:6000",
            "http://127.0.0.1:6000",
            "TCP:6000:interface=127.0.0.1",
            "fd:3",
            "stdio:",
            "unix",
            "unix:",
            "unix:address=",
            "systemd:",
            ":",
        ):
            self.assertFlagRefused("listen", endpoint, "tcp:PORT:interface=ADDRESS", "unix:PATH")

    def test_ports(self) -> None:
        for port in ("65536", "-1", "http", "", "6000.0", "port="):
            self.assertFlagRefused(
                "listen",
                f"tcp:{port}:interface=127.0.0.1",
                "tcp with a port from 0 to 65535",
            )

    def test_empty(self) -> None:
        self.assertFlagRefused("listen", "", "a text that is not empty")
        self.assertInFileRefused("listen", '""', "a text that is not empty")

    def test_oneWrongAmongSeveral(self) -> None:
        wrong = "tcp:7:interface=0.0.0.0"
        self.assertRefused(
            "--listen=unix:/t:mode=600", f"--listen={wrong}", says=(wrong, "loopback")
        )
        self.assertRefused(
            file=f'listen = ["unix:/t:mode=600", "{wrong}"]', says=(wrong, "loopback")
        )

    def test_isLoopback(self) -> None:
        for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "::1%lo"):
            self.assertTrue(is_loopback(host), host)
        for host in ("", "0.0.0.0", "::", "128.0.0.1", "127.1", "LOCALHOST.", "fe80::1%lo", "x"):
            self.assertFalse(is_loopback(host), host)
