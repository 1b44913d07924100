"""Questions that have one right answer, whatever is being done to the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torture.ledger import Recording
from torture.line import Lost

if TYPE_CHECKING:
    from torture.clients import Actor


def _check(actor: Actor, recording: Recording, answer: dict[str, Any], code: str) -> None:
    if answer.get("code") != code:
        actor.rig.ledger.refused(recording, actor.party, answer)


async def ack_too_early(actor: Actor, recording: Recording) -> None:
    """An ack of a side that has never fetched."""
    answer = await actor.ask(type="ack", id=recording.id, owner=recording.owner)
    _check(actor, recording, answer, "not-fetched")


async def cancel_as_receiver(actor: Actor, recording: Recording) -> None:
    """Only the owner may."""
    answer = await actor.ask(type="cancel", id=recording.id, owner=recording.owner)
    _check(actor, recording, answer, "unknown-id")


async def take_the_id(actor: Actor, recording: Recording, audio: bytes) -> None:
    """Another recording by the name of one that is there."""
    begin = {"type": "submit", "id": recording.id, "receiver": recording.receiver}
    try:
        line = await actor.line()
        answer = await line.answer(line.say(begin, audio, {"type": "end", "id": recording.id}))
    except Lost:
        actor.cut()
        return
    if not await actor.must_repeat(answer):
        _check(actor, recording, answer, "id-taken")


async def is_listed(actor: Actor, recording: Recording) -> None:
    """What was accepted, and not acked, is in the list."""
    answer = await actor.ask(type="list")
    listed = [(item["owner"], item["id"]) for item in answer.get("transcripts", ())]
    if recording.name not in listed:
        actor.rig.ledger.broken(f"{recording.name}: {actor.party} is not listed it")
