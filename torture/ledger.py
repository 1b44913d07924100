"""What the clients were promised, what came of it, and the verdict. Pure: no clock, no socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Answer = Mapping[str, Any]
Name = tuple[str, str]
"""An owner and an id."""

ENDED = ("purged", "cancelled", "expired")
_WORDS = ("type", "code", "reason", "retry_after")


@dataclass
class Side:
    """What a party, the owner or the receiver of a recording, has done and heard.

    :ivar served: it has got the right text, or has heard that the transcription failed, as it must.
    :ivar acking: it has sent an ``ack``, whether or not it was answered.
    :ivar acked: an ``ack`` was answered.
    """

    served: bool = False
    acking: bool = False
    acked: bool = False


@dataclass
class Recording:
    """One recording, as its clients know it.

    :ivar text: what is said in it.
    :ivar mark: bytes of its audio that are in no other recording.
    :ivar short: its time to live is so short that it is to expire.
    :ivar poisoned: its transcription must fail.
    :ivar ended: its `end` may have reached the daemon, so that it may be accepted.
    :ivar repeated: it was submitted more than once.
    :ivar accepted: the daemon has promised to keep it.
    :ivar cancelling: its cancellation was asked for.
    :ivar words: the words of its transcript, once fetched.
    :ivar state: the last state heard of, where that is all there is.
    """

    owner: str
    id: str
    receiver: str
    text: str
    mark: bytes = b""
    short: bool = False
    poisoned: bool = False
    ended: bool = False
    repeated: bool = False
    accepted: bool = False
    cancelling: bool = False
    words: list[Any] | None = None
    state: str = ""
    sides: dict[str, Side] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for party in (self.owner, self.receiver):
            self.sides[party] = Side()

    @property
    def name(self) -> Name:
        """Its owner and id."""
        return self.owner, self.id

    @property
    def served(self) -> bool:
        """Whether all sides have got what they were promised."""
        return all(side.served for side in self.sides.values())

    @property
    def owed(self) -> bool:
        """Whether its sides were promised an outcome."""
        return self.accepted and not self.cancelling and not self.short


@dataclass(frozen=True)
class Counts:
    """What was counted. All but the first two must be 0.

    :ivar accepted: recordings that the daemon promised to keep.
    :ivar delivered: recordings whose right text all sides got.
    :ivar lost: promised, and neither delivered nor, where it had to fail, reported.
    :ivar strangers: answers that told a stranger anything.
    :ivar early: answered as gone to a side that had not acked.
    :ivar left: files, rows or answers that held on to what had to be deleted.
    :ivar unfinished: promised, and without an outcome however long it was waited for.
    :ivar broken: other promises that were broken.
    """

    accepted: int = 0
    delivered: int = 0
    lost: int = 0
    strangers: int = 0
    early: int = 0
    left: int = 0
    unfinished: int = 0
    broken: int = 0

    @property
    def clean(self) -> bool:
        """Whether every promise was kept, and there was something to keep."""
        bad = [getattr(self, f.name) for f in fields(self)][2:]
        return self.accepted > 0 and not any(bad)


class Ledger:
    """The books of one run.

    :ivar notes: a line for each thing that went wrong: ids, states and codes, no text.
    """

    def __init__(self) -> None:
        self.recordings: dict[Name, Recording] = {}
        self.notes: list[str] = []
        self._strangers = 0
        self._left = 0
        self._broken = 0
        self._early: set[Name] = set()
        self._unfinished: set[Name] = set()

    def offer(self, recording: Recording) -> Recording:
        """A recording is about to be submitted for the first time."""
        self.recordings[recording.name] = recording
        return recording

    def broken(self, what: str) -> None:
        """Any other promise was broken."""
        self._broken += 1
        self.notes.append(what)

    # What the daemon answered to a side.

    def accepted(self, recording: Recording, answer: Answer) -> None:
        """`accepted` was answered to the owner."""
        recording.accepted = True
        named = (answer.get("owner"), answer.get("id"), answer.get("receiver"))
        if named != (*recording.name, recording.receiver):
            self.broken(f"{recording.name}: accepted under other names")
        if not recording.repeated and answer.get("state") not in ("queued", "transcribing"):
            self.broken(f"{recording.name}: accepted at once as {answer.get('state')}")

    def delivered(self, recording: Recording, party: str, answer: Answer) -> None:
        """A `transcript` came."""
        if recording.poisoned:
            self.broken(f"{recording.name}: is poisoned, and was transcribed")
        elif answer.get("text") != recording.text:
            self.notes.append(f"{recording.name}: {party} got a wrong text")
            recording.sides[party].served = False
        elif recording.words is not None and recording.words != answer.get("words"):
            self.broken(f"{recording.name}: another fetch gave other words")
        else:
            recording.words = answer.get("words")
            recording.sides[party].served = True

    def failed(self, recording: Recording, party: str, answer: Answer) -> None:
        """`failed` was answered to a fetch."""
        if recording.poisoned and answer.get("reason"):
            recording.sides[party].served = True
        else:
            recording.state = "failed"
            self.notes.append(f"{recording.name}: failed: {answer.get('reason')}")

    def acked(self, recording: Recording, party: str, answer: Answer) -> None:
        """`acked` was answered."""
        side = recording.sides[party]
        side.acked = True
        given: Answer = answer.get("given", {})
        mine = "owner" if party == recording.owner else "receiver"
        if given.get(mine) is not True:
            self.broken(f"{recording.name}: acked, but not given to {party}")
        both = given.get("owner") is True and given.get("receiver") is True
        if both and not all(s.acking for s in recording.sides.values()):
            self.broken(f"{recording.name}: given to a side that has not acked")
        purged = answer.get("purged")
        if purged and not self._may_be_gone(recording, party=None):
            self._early.add(recording.name)
            self.notes.append(f"{recording.name}: purged before both sides acked")
        if both and not purged:
            self._left += 1
            self.notes.append(f"{recording.name}: both sides acked, and it is not purged")

    def _may_be_gone(self, recording: Recording, party: str | None) -> bool:
        """Whether a side may be told that it is gone; None for its files."""
        if recording.cancelling or recording.short:
            return True
        if party is not None and recording.sides[party].acking:
            return True
        return all(side.acking for side in recording.sides.values())

    def gone(self, recording: Recording, party: str) -> None:
        """`gone` was answered to a side."""
        if not self._may_be_gone(recording, party):
            self._early.add(recording.name)
            self.notes.append(f"{recording.name}: gone before {party} acked")

    def unknown(self, recording: Recording, party: str) -> None:
        """`unknown-id` was answered to a side."""
        # The name of what has expired is kept for a while only.
        if recording.accepted and not recording.short:
            recording.state = "unknown"
            self.notes.append(f"{recording.name}: accepted, and unknown to {party}")
            for side in recording.sides.values():
                side.served = False

    def refused(self, recording: Recording, party: str, answer: Answer) -> None:
        """An error that is no outcome was answered to a side."""
        what = f"{answer.get('type')} {answer.get('code', '')} {answer.get('reason', '')}"
        self.broken(f"{recording.name}: {party} was answered {what}")

    def listed(self, party: str, answer: Answer) -> list[Recording]:
        """A party's `listing` when nothing is in work: those of it that it is still to take."""
        found = []
        for item in answer["transcripts"]:
            recording = self.recordings.get((item["owner"], item["id"]))
            if recording is None or party not in recording.sides:
                self._strangers += 1
                self.notes.append(f"{party} is listed {item['owner']}/{item['id']}")
            elif not recording.ended:
                self.broken(f"{recording.name}: its upload never ended, and it is listed")
            else:
                recording.state = item["state"]
                found.append(recording)
        return found

    def expired(self, recording: Recording, answer: Answer) -> None:
        """The answer to `status` long after a short time to live."""
        if answer.get("code") not in ("gone", "unknown-id"):
            self._left += 1
            self.notes.append(f"{recording.name}: has expired, and is {answer.get('state')}")

    def standing(self, recording: Recording, answer: Answer) -> None:
        """The owner's answer to `status` when all is said to be over."""
        if answer["type"] == "status":
            recording.state = answer["state"]
            if recording.owed and answer["state"] in ("uploading", "queued", "transcribing"):
                self._unfinished.add(recording.name)
                self.notes.append(f"{recording.name}: is still {answer['state']}")
            elif not recording.owed:
                self._left += 1
                self.notes.append(f"{recording.name}: is still {answer['state']}")
        elif answer.get("code") == "gone":
            self.gone(recording, recording.owner)
        elif answer.get("code") == "unknown-id":
            self.unknown(recording, recording.owner)
        else:
            self.refused(recording, recording.owner, answer)

    # What strangers heard.

    def stranger(self, request: str, answer: Answer, never: Answer) -> None:
        """What a stranger heard of a recording, and of one that never was."""
        heard, reference = ([a.get(key) for key in _WORDS] for a in (answer, never))
        if heard != reference or answer.get("code") != "unknown-id":
            self._strangers += 1
            self.notes.append(f"a stranger's {request} was answered {answer.get('type')}")

    # What was found on the disk.

    def leftovers(self, found: Iterable[str]) -> None:
        """What should have been deleted and was not, a line each."""
        for what in found:
            self._left += 1
            self.notes.append(f"left on disk: {what}")

    def rows(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """The owners, ids and states in the database when all is over."""
        for owner, id, state in rows:
            if state not in ENDED:
                self._unfinished.add((owner, id))
                self.notes.append(f"{(owner, id)}: its row says {state}")

    def counts(self) -> Counts:
        """The verdict."""
        accepted = [r for r in self.recordings.values() if r.accepted]
        owed = [r for r in accepted if r.owed]
        lost = [r for r in owed if not r.served and r.name not in self._unfinished]
        self.notes += [f"{r.name}: lost, last {r.state or 'unheard of'}" for r in lost]
        return Counts(
            accepted=len(accepted),
            delivered=sum(r.served and not r.poisoned for r in accepted),
            lost=len(lost),
            strangers=self._strangers,
            early=len(self._early),
            left=self._left,
            unfinished=len(self._unfinished),
            broken=self._broken,
        )
