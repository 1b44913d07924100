"""How many there are of each of some names, without an entry for those that there are none of."""

from __future__ import annotations

from collections import Counter


class Tally(Counter[str]):
    """Counts by name; what it holds is bounded by what there is, if each is taken off again."""

    def less(self, name: str) -> None:
        """There is one less."""
        self[name] -= 1
        if not self[name]:
            del self[name]
