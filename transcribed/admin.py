"""The ``transcribed`` command: what an operator does besides running the daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from transcribed import __version__
from transcribed.settings import OPTIONS, WrongValue
from transcribed.task import INTERRUPTED, UNFORESEEN, UNREADABLE

# Twisted and FFmpeg take most of a second: --help and a typing error need none of them.

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def _as_the_daemon_s(key: str) -> Callable[[_F], _F]:
    """An option that is the daemon's, with its default and its check."""
    [option] = [option for option in OPTIONS if option.key == key]

    def check(_: click.Context, __: click.Parameter, value: str) -> object:
        try:
            return option.check(value)
        except WrongValue as e:
            raise click.BadParameter(f"it must be {e}") from e

    return click.option(f"--{key}", default=option.default, help=option.help, callback=check)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="transcribed")
def cli() -> None:
    """What an operator does besides running the daemon, which is: twistd transcribed."""


@cli.command()
@_as_the_daemon_s("model")
@_as_the_daemon_s("dtype")
@_as_the_daemon_s("language")
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=3, help="How often all is measured, in turns."
)
@click.option("--audio", metavar="FILE", help="Speech, 20 s or more. [some Swedish of ours]")
@click.option("--json", "output", type=click.File("w", lazy=False), help="All figures, as JSON.")
def tune(output: Any, **wanted: Any) -> None:
    """Measure how many workers of how many threads are best on this machine, which must be idle.

    Takes some minutes. For each way to share out the cores: seconds of audio a second while windows
    of 20 s are always waiting, seconds until the text of a 5 s message on an idle pool, memory of
    all workers together, and seconds from the start until all of them are ready.
    """
    from transcribed.tune import TuneFailed, Wanted
    from transcribed.tune import tune as measure

    async def job(reactor: Any) -> None:
        try:
            found = await measure(Wanted(**wanted), reactor, complain)
        except TuneFailed as e:
            raise Refused(UNFORESEEN, str(e)) from e
        print("\n".join(found.lines()), flush=True)
        if output is not None:
            json.dump(found.as_json(), output, indent=2)
            output.write("\n")

    run(job)


_FILE = click.option(
    "--file", default="var/tokens", type=click.Path(dir_okay=False), help="The tokens' file."
)


@cli.group()
def token() -> None:
    """Who may come in, where the daemon runs with --auth tokens:FILE.

    The daemon reads the file when it starts, and again when it is sent SIGHUP.
    """


@token.command()
@click.argument("party")
@_FILE
def add(party: str, file: str) -> None:
    """Give PARTY a token, and print it, this once; one that it had is good no more."""
    from transcribed import tokens

    made, had_one = _change(lambda path: tokens.add(path, party), file)
    print(made, flush=True)
    if had_one:
        complain(f"the token that {party} had is good no more, once the daemon is sent SIGHUP")


@token.command()
@click.argument("party")
@_FILE
def revoke(party: str, file: str) -> None:
    """Take PARTY's token away."""
    from transcribed import tokens

    if not _change(lambda path: tokens.revoke(path, party), file):
        complain(f"{party} has no token in {file}")
        raise SystemExit(UNFORESEEN)


def _change(change: Callable[[Path], _T], file: str) -> _T:
    try:
        return change(Path(file))
    except (OSError, ValueError) as e:
        complain(f"{file}: {getattr(e, 'strerror', None) or e}")
        raise SystemExit(UNREADABLE) from e


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@_as_the_daemon_s("state")
def backup(file: Path, state: Path) -> None:
    """Write all that must survive into FILE, a tar file, while the daemon goes on.

    To restore it, unpack it into a new directory and start a daemon with that for its --state. It
    holds voices and texts, and they stay in it when the daemon deletes them: keep it as safe as
    they are to be, and delete it in time.
    """
    import signal
    import sqlite3

    from transcribed.backup import BackupFailed, NoState, back_up

    # Not even then half of a backup may stay behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        made = back_up(state, file)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except (BackupFailed, OSError, sqlite3.Error) as e:
        reason: object = e
        if isinstance(e, OSError) and e.strerror:
            reason = f"{e.strerror}: {e.filename}" if e.filename else e.strerror
        complain(f"there is no backup: {reason}")
        raise SystemExit(UNREADABLE if isinstance(e, NoState) else UNFORESEEN) from e
    for name in made.lost:
        complain(f"warning: the state directory itself has lost the audio or text of {name}")
    print(f"{file}: {made.transcripts} transcripts, {made.size} bytes", flush=True)


class Refused(Exception):
    """A command cannot do what it was asked; with its exit status, of :mod:`transcribed.task`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def complain(problem: object) -> None:
    """One line on stderr."""
    print("transcribed: " + " ".join(str(problem).split()), file=sys.stderr, flush=True)


def run(job: Callable[[Any], Coroutine[Any, Any, None]]) -> NoReturn:
    """Do `job` in a reactor, which it is given, and end the program.

    Whatever goes wrong is one line on stderr. Ctrl-C cancels the job, which may still clean up.
    """
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater, react
    from twisted.logger import globalLogBeginner

    from transcribed.audiofile import UnreadableFile

    # What libraries log is not for those who use a command.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)

    interrupted = False

    async def guarded(reactor: Any) -> None:
        try:
            # Until the reactor runs, nobody hears Ctrl-C but Python.
            await deferLater(reactor, 0)
            await job(reactor)
        except Exception as e:
            if interrupted:
                raise SystemExit(INTERRUPTED) from None
            known = isinstance(e, Refused | UnreadableFile)
            complain(e if known else f"unforeseen: {type(e).__name__}: {e}")
            if isinstance(e, UnreadableFile):
                raise SystemExit(UNREADABLE) from e
            raise SystemExit(e.status if isinstance(e, Refused) else UNFORESEEN) from e

    def start(reactor: Any) -> Deferred[None]:
        done = Deferred.fromCoroutine(guarded(reactor))
        ended: Deferred[None] = Deferred()

        def stop() -> Deferred[None]:
            nonlocal interrupted
            interrupted = not ended.called
            done.cancel()
            return ended

        def over(result: Any) -> Any:
            ended.callback(None)
            return result

        reactor.addSystemEventTrigger("before", "shutdown", stop)
        return done.addBoth(over)

    react(start)


def main() -> None:
    """The console script; ends the program."""
    cli(prog_name="transcribed")
