"""A session belongs to the account that first used it."""

from types import SimpleNamespace

import gradio as gr
import pytest

from page.server import session
from page.server.accounts import Accounts, OtherAccount
from page.server.session import publishing_token, user_message, visitor_of
from page.server.settings import Mode, Site
from pruning.errors import SavingError

SPACE = Site(Mode.SPACE, None, None)
ROOM = Site(Mode.ROOM, "0.0.0.0", frozenset({"classroom.local"}))


def token_of(name):
    return gr.OAuthToken(f"{name}-token", "openid", 2**40)


def request_of(session_hash, address="198.51.100.1"):
    return SimpleNamespace(session_hash=session_hash, headers={"x-forwarded-for": address})


def test_a_session_is_refused_to_another_account_in_a_sentence():
    accounts = Accounts()
    accounts.check("session", "ada")
    accounts.check("session", "ada")
    with pytest.raises(OtherAccount) as refused:
        accounts.check("session", "bob")
    assert user_message(refused.value).startswith("This visit was started by someone else")
    accounts.check("another", "bob")


def test_a_visitor_may_sign_in_during_a_visit_and_out_again():
    accounts = Accounts()
    for account in ("", "ada", "", "ada"):
        accounts.check("session", account, "home")
    with pytest.raises(OtherAccount):
        accounts.check("session", "bob", "home")


def test_a_session_that_a_stranger_made_up_takes_nobody_s_account():
    accounts = Accounts()
    accounts.check("made-up", "", "stranger")
    with pytest.raises(OtherAccount):
        accounts.check("made-up", "ada", "home")
    accounts.check("made-up", "", "home")
    with pytest.raises(OtherAccount):
        accounts.check("made-up", "ada", "home")


def test_the_accounts_of_a_bounded_number_of_sessions_are_kept():
    accounts = Accounts(size=3)
    for number in range(10):
        accounts.check(f"session{number}", "ada")
    assert len(accounts) == 3
    accounts.check("session0", "bob")
    with pytest.raises(OtherAccount):
        accounts.check("session9", "bob")


def test_on_a_space_the_page_s_sessions_belong_to_accounts(monkeypatch):
    monkeypatch.setattr(session, "SITE", SPACE)
    request = request_of("visit-of-ada")
    anonymous = visitor_of(request, None)
    ada = visitor_of(request, token_of("ada"))
    assert (anonymous.access.token, ada.access.token) == (False, "ada-token")
    assert anonymous != ada
    with pytest.raises(gr.Error):
        visitor_of(request, token_of("bob"))


def test_in_a_room_nobody_acts_as_the_owner_of_the_machine(monkeypatch):
    monkeypatch.setattr(session, "SITE", ROOM)
    monkeypatch.setattr(session, "saved_token", lambda: "teacher-token")
    pupil = visitor_of(request_of("pupil"), None)
    assert pupil.access.token is False
    for typed in ("", "  ", None, 5):
        with pytest.raises(SavingError, match="your own Hub token"):
            publishing_token(pupil, typed)
    assert publishing_token(pupil, " pupil-token ") == "pupil-token"


def test_on_a_space_a_typed_token_is_not_used(monkeypatch):
    monkeypatch.setattr(session, "SITE", SPACE)
    with pytest.raises(SavingError, match="Sign in first"):
        publishing_token(visitor_of(request_of("anonymous"), None), "typed-token")
