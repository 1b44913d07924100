"""Makes ``--auth tokens:FILE`` and ``--auth jwt:FILE`` known."""

from transcribed.checkers import TokenCheckerFactory, WebTokenCheckerFactory

tokens = TokenCheckerFactory()
web_tokens = WebTokenCheckerFactory()
