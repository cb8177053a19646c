"""A stand-in for the Hugging Face Hub on the loopback address, for tests.

The client that it stands in for is huggingface_hub 2.4.
"""

from .repos import Repo, User
from .server import CLIENT_ENV, LoopbackHub

__all__ = ["CLIENT_ENV", "LoopbackHub", "Repo", "User"]
