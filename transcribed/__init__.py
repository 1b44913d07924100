"""A self-hosted transcription daemon: sound in over a websocket, text out to both its sides."""

__version__ = "0.1.0"
