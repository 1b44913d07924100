"""A real daemon under clients that check its promises, while faults are injected.

``python -m torture``, or ``make torture``; see :mod:`torture.__main__` for its options.

- ``ledger.py``: what clients were promised and what came of it; the counts. Pure.
- ``line.py``: one connection. ``clients.py``: parties that send, take, ack and cancel; strangers.
- ``probes.py``: questions that have one right answer. ``crowd.py``: all clients of one run.
- ``rig.py``: the daemon, started again and again. ``evidence.py``: what is left on its disk.
- ``runs.py``: one fault from its start to its row; ``__main__.py``: all of them, and the table.
- ``kills.py``, ``children.py``, ``disks.py``, ``cuts.py``, ``clocks.py``, ``queues.py``,
  ``badinput.py``, ``fuzz.py``: the faults. ``fault.py``: what one is; ``faults.py``: all of them.
- ``injected.py``: becomes ``sitecustomize`` of the daemon and its children. ``eio.c``: preloaded.
"""
