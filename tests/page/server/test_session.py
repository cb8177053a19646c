"""Settings, names of jobs, and what a visitor is told."""

from types import SimpleNamespace

import pytest

from page.server.queue import JobKey
from page.server.session import job_name, read_setting, session_of, user_message
from pruning import ModelError


def test_the_queue_size_has_a_default(monkeypatch):
    monkeypatch.delenv("SECATEUR_QUEUE", raising=False)
    monkeypatch.delenv("SECATEUR_LINE", raising=False)
    assert read_setting("SECATEUR_QUEUE", 8, "SECATEUR_LINE") == 8


def test_the_old_name_of_a_setting_is_still_read_with_one_line(monkeypatch, caplog):
    monkeypatch.delenv("SECATEUR_QUEUE", raising=False)
    monkeypatch.setenv("SECATEUR_LINE", "3")
    assert read_setting("SECATEUR_QUEUE", 8, "SECATEUR_LINE") == 3
    (record,) = caplog.records
    assert record.getMessage() == "SECATEUR_LINE is now called SECATEUR_QUEUE; the old name will be removed."


def test_the_new_name_of_a_setting_wins(monkeypatch, caplog):
    monkeypatch.setenv("SECATEUR_QUEUE", "5")
    monkeypatch.setenv("SECATEUR_LINE", "3")
    assert read_setting("SECATEUR_QUEUE", 8, "SECATEUR_LINE") == 5
    assert not caplog.records


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "many", ""])
def test_a_bad_setting_ends_the_start_with_one_line(monkeypatch, value):
    monkeypatch.setenv("SECATEUR_QUEUE", value)
    with pytest.raises(SystemExit, match=r"SECATEUR_QUEUE is .* it must be a number above 0"):
        read_setting("SECATEUR_QUEUE", 8)


def test_a_job_is_named_after_the_session_and_its_kind():
    request = SimpleNamespace(session_hash="ada")
    assert (job_name(request), job_name(request, "push")) == (JobKey("ada"), JobKey("ada", "push"))


def test_a_session_cannot_name_a_job_of_another_kind():
    assert session_of(SimpleNamespace(session_hash="ada push")) == "adapush"


def test_a_call_without_a_session_has_a_name_of_its_own():
    assert session_of(None) != session_of(None)


def test_an_error_for_the_user_is_told_as_it_is_and_a_bug_is_logged(caplog):
    assert user_message(ModelError("Choose another model.")) == "Choose another model."
    assert not caplog.records
    assert user_message(KeyError("secret")).startswith("Something went wrong on our side.")
    assert "secret" in caplog.text
