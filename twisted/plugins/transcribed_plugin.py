"""Makes ``twistd transcribed`` known."""

from twisted.application.service import ServiceMaker

transcribed = ServiceMaker(
    "transcribed", "transcribed.tap", "Transcribes speech for both its sides.", "transcribed"
)
