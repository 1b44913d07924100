"""The ``transcribe`` command: a thin face of :mod:`transcribed.client` for shells and scripts."""

from __future__ import annotations

import getpass
import os
import re
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from transcribed import __version__
from transcribed.task import (
    EXIT_CODES,
    INTERRUPTED,
    NOT_NOW,
    OK,
    UNFORESEEN,
    UNREADABLE,
    USAGE,
    Common,
    Job,
    Task,
)

# Twisted, Autobahn and FFmpeg take most of a second: --help and a typing error need none of them.
if TYPE_CHECKING:
    from transcribed.client import Client
    from transcribed.terminal import Terminal

DEFAULT_URL = "ws://127.0.0.1:6000/ws"

_F = TypeVar("_F", bound=Callable[..., Any])

_COMMON = (
    click.option("--url", metavar="URL", help=f"The daemon. [TRANSCRIBE_URL; {DEFAULT_URL}]"),
    click.option(
        "--as", "party", metavar="PARTY", help="Who you are. [TRANSCRIBE_PARTY; the login name]"
    ),
    click.option(
        "--token-file", metavar="FILE", help="The token is in FILE. [the token: TRANSCRIBE_TOKEN]"
    ),
    click.option("--cafile", metavar="FILE", help="For wss: trust the certificates in FILE only."),
    click.option("--json", is_flag=True, help="One JSON object a line."),
    click.option("--quiet", "-q", is_flag=True, help="No progress and no warnings on stderr."),
)


def _common(command: _F) -> _F:
    """Gives a command, or the group, the common options; they may stand on either side."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def _task(context: click.Context, /, given: dict[str, Any], job: Job) -> Task:
    if "" in (given["party"], context.obj["party"]):
        raise click.UsageError("--as names nobody")
    options = {name: given[name] or context.obj[name] for name in context.obj}
    party = options["party"] or os.environ.get("TRANSCRIBE_PARTY")
    if not party:
        try:
            party = getpass.getuser()
        except (OSError, KeyError) as e:
            raise click.UsageError("you have no login name: say who you are with --as") from e
    return Task(
        Common(
            options["url"] or os.environ.get("TRANSCRIBE_URL") or DEFAULT_URL,
            party,
            _token(options["token_file"]),
            options["cafile"],
            options["json"],
            options["quiet"],
        ),
        job,
    )


def _token(path: str | None) -> str | None:
    if path is None:
        return os.environ.get("TRANSCRIBE_TOKEN") or None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or "not text"
        raise click.UsageError(f"the token file {path} cannot be read: {why}") from e


def _epilog() -> str:
    return "\b\nExit status:\n" + "\n".join(
        f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()
    )


def _legal_id(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and re.fullmatch(r"[A-Za-z0-9._~:@-]{1,128}", value) is None:
        raise click.BadParameter("an id is 1 to 128 of the characters A-Z a-z 0-9 . _ ~ : @ -")
    return value


_ID = click.argument("id", callback=_legal_id)
_OWNER = click.option("--owner", metavar="PARTY", help="Who sent it, if not you.")
_ACK = click.option("--no-ack", is_flag=True, help="Do not say that you have the text.")


@click.group(
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name="transcribe")
@_common
@click.pass_context
def cli(context: click.Context, /, **common: Any) -> None:
    """Send recordings to a transcription daemon and fetch their text.

    The options that all commands share may stand before or after the command. A token is taken from
    TRANSCRIBE_TOKEN or a file, never from the command line, which others can see.
    """
    context.obj = common


@cli.command()
@click.argument("file")
@click.option("--to", "receiver", metavar="PARTY", help="Who is to get the text, besides you.")
@click.option("--id", callback=_legal_id, help="The transcript's name. [a new UUID]")
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Delete it after S seconds, fetched or not.",
)
@click.option("--language", metavar="L", help="What is spoken, e.g. sv.")
@click.option("--wait", is_flag=True, help="Wait for the text and print it, too.")
@_ACK
@_common
@click.pass_context
def send(
    context: click.Context,
    /,
    file: str,
    receiver: str | None,
    id: str | None,
    ttl: float | None,
    language: str | None,
    wait: bool,
    no_ack: bool,
    **common: Any,
) -> Task:
    """Send FILE (any audio that FFmpeg knows; - is the standard input) and print its id.

    The id is printed once the daemon has promised to keep the recording. To repeat a send with the
    same --id is safe: the same recording is taken once only, another one is refused (id-taken).
    """
    from transcribed.audiofile import AudioFile

    name = id or str(uuid.uuid4())
    task = _task(context, common, lambda client, terminal: job(client, terminal))
    audio = AudioFile(file)

    async def job(client: Client, terminal: Terminal) -> int:
        await terminal.connect(client)
        accepted = await client.submit(
            name,
            audio.samples,
            receiver,
            audio.rate,
            audio.channels,
            ttl,
            language,
            terminal.sending(audio.size),
        )
        if audio.damaged:
            terminal.warn(f"{audio.name}: {audio.damaged} damaged packets were left out")
        terminal.write(accepted, accepted.id)
        if wait:
            return await _fetched(client, terminal, name, None, True, not no_ack)
        return OK

    return task


@cli.command()
@_ID
@_OWNER
@click.option("--no-wait", is_flag=True, help=f"If it is not ready, end with status {NOT_NOW}.")
@_ACK
@_common
@click.pass_context
def fetch(
    context: click.Context,
    /,
    id: str,
    owner: str | None,
    no_wait: bool,
    no_ack: bool,
    **common: Any,
) -> Task:
    """Print the text of ID, and then let the daemon know that you have it.

    When all sides have said so, the daemon deletes audio and text.
    """

    async def job(client: Client, terminal: Terminal) -> int:
        await terminal.connect(client)
        return await _fetched(client, terminal, id, owner, not no_wait, not no_ack)

    return _task(context, common, job)


async def _fetched(
    client: Client, terminal: Terminal, id: str, owner: str | None, wait: bool, ack: bool
) -> int:
    from transcribed.client import Status

    with terminal.waiting(lambda: client.status(id, owner), wait):
        answer = await client.fetch(id, owner, wait)
    if isinstance(answer, Status):
        terminal.write_json(answer)
        terminal.warn(f"{id} is not ready: {answer.state}, {answer.progress:.0%}")
        return NOT_NOW
    # Nobody may say that the text is here before it has left this process.
    terminal.write(answer, answer.text)
    if ack:
        await client.ack(id, owner)
    return OK


@cli.command()
@_ID
@_OWNER
@_common
@click.pass_context
def status(context: click.Context, /, id: str, owner: str | None, **common: Any) -> Task:
    """Print how ID is: id, owner, receiver, state, progress, seconds, expires, between tabs."""

    async def job(client: Client, terminal: Terminal) -> int:
        await terminal.connect(client)
        found = await client.status(id, owner)
        terminal.write(found, _row(found))
        return OK

    return _task(context, common, job)


@cli.command("list")
@_common
@click.pass_context
def list_(context: click.Context, /, **common: Any) -> Task:
    """Print all transcripts that you have not acked, in the columns of status."""

    async def job(client: Client, terminal: Terminal) -> int:
        await terminal.connect(client)
        for found in await client.list():
            terminal.write(found, _row(found))
        return OK

    return _task(context, common, job)


@cli.command()
@_common
@click.pass_context
def watch(context: click.Context, /, **common: Any) -> Task:
    """Print each change of your transcripts (id, owner, receiver, state, progress) until Ctrl-C."""

    async def job(client: Client, terminal: Terminal) -> int:
        await terminal.connect(client)
        await terminal.watch(client, lambda e: [e.id, e.owner, e.receiver, e.state, e.progress])
        return OK

    return _task(context, common, job)


@cli.command()
@_ID
@_OWNER
@_common
@click.pass_context
def ack(context: click.Context, /, id: str, owner: str | None, **common: Any) -> Task:
    """Say that you have the text of ID, after fetch --no-ack, or that you know that it failed."""

    async def job(client: Client, terminal: Terminal) -> int:
        await terminal.connect(client)
        terminal.write_json(await client.ack(id, owner))
        return OK

    return _task(context, common, job)


@cli.command()
@_ID
@_common
@click.pass_context
def cancel(context: click.Context, /, id: str, **common: Any) -> Task:
    """Delete ID, audio and text, whatever its state. Only who sent it may."""

    async def job(client: Client, terminal: Terminal) -> int:
        await terminal.connect(client)
        terminal.write_json(await client.cancel(id))
        return OK

    return _task(context, common, job)


def _row(found: Any) -> str:
    columns = (
        found.id,
        found.owner,
        found.receiver,
        found.state,
        f"{found.progress:.2f}",
        f"{found.seconds:.2f}",
        found.expires,
    )
    return "\t".join(columns)


def complain(problem: object) -> None:
    """One line on stderr."""
    print("transcribe: " + " ".join(str(problem).split()), file=sys.stderr, flush=True)


def understood(arguments: list[str] | None = None) -> Task | int:
    """Reads the command line: what is to be done, or the exit status when that is all."""
    try:
        result = cli.main(arguments, prog_name="transcribe", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as e:
        context = getattr(e, "ctx", None)
        path = context.command_path if context is not None else "transcribe"
        complain(f"{e.format_message()} (see {path} --help)")
        return USAGE
    except Exception as e:
        from transcribed.audiofile import UnreadableFile

        complain(e if isinstance(e, UnreadableFile) else f"{type(e).__name__}: {e}")
        return UNREADABLE if isinstance(e, UnreadableFile) else UNFORESEEN
    return result if isinstance(result, Task | int) else OK


def main(arguments: list[str] | None = None) -> NoReturn:
    """The console script: does what the command line says and exits with an :data:`EXIT_CODES`."""
    task = understood(arguments)
    if isinstance(task, int):
        sys.exit(task)
    from transcribed.terminal import run

    sys.exit(run(task))
