"""Which account a session belongs to."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import gradio as gr

from pruning.errors import PruningError

MAX_SESSIONS = 10_000


class OtherAccount(PruningError, gr.Error):
    """The session belongs to another account, or was started elsewhere."""

    def __init__(self) -> None:
        gr.Error.__init__(
            self,
            "This visit was started by someone else, or before you signed in from another network. "
            "Reload the page and try again.",
            print_exception=False,
        )

    def __str__(self) -> str:
        return str(self.message)


@dataclass(frozen=True)
class _Owner:
    """Who uses a session: where they came from first, and their account once they signed in."""

    address: str
    account: str = ""


class Accounts:
    """The account of each session: the first that signed in there.

    Until someone signs in, a session belongs to the address that first used it. So nobody can invent a session
    and have someone else sign in to it. The least recently used sessions are forgotten.
    """

    def __init__(self, size: int = MAX_SESSIONS) -> None:
        self._size = size
        self._owners: OrderedDict[str, _Owner] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._owners)

    def check(self, session: str, account: str, address: str = "") -> None:
        """Check that a visitor may use a session, and remember them.

        Args:
            session: The session's name.
            account: What stands for the visitor's account; empty if they are not signed in.
            address: Where they come from.

        Raises:
            OtherAccount: They may not.
        """
        with self._lock:
            owner = self._owners.get(session, _Owner(address))
            if account and account != owner.account:
                if owner.account or owner.address != address:
                    raise OtherAccount
                owner = _Owner(owner.address, account)
            self._owners[session] = owner
            self._owners.move_to_end(session)
            if len(self._owners) > self._size:
                self._owners.popitem(last=False)
