"""Where the page runs, by its environment."""

import pytest

from page.server.settings import Mode, Site, read_site


def test_by_default_the_page_answers_its_owner_by_the_names_of_this_machine():
    site = read_site({})
    assert (site.mode, site.host, site.uses_saved_token) == (Mode.OWNER, "127.0.0.1", True)
    assert site.names == {"localhost", "127.0.0.1", "[::1]"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"])
def test_an_address_of_this_machine_alone_is_still_its_owner_s(host):
    assert read_site({"SECATEUR_HOST": host}).uses_saved_token


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.20", "::", "10.0.0.1"])
def test_on_the_network_nobody_uses_the_saved_token(host):
    site = read_site({"SECATEUR_HOST": host, "SECATEUR_NAMES": "Classroom.local, 192.168.1.20,fe80::0:1"})
    assert (site.mode, site.uses_saved_token) == (Mode.ROOM, False)
    assert site.names == {
        "localhost",
        "127.0.0.1",
        "[::1]",
        "classroom.local",
        "192.168.1.20",
        "[fe80::1]",
    }


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SECATEUR_HOST": "0.0.0.0"}, "set SECATEUR_NAMES"),
        ({"SECATEUR_HOST": "0.0.0.0", "SECATEUR_NAMES": " , "}, "set SECATEUR_NAMES"),
        ({"SECATEUR_HOST": "192.168.1.20", "SECATEUR_NAMES": "a.local:7860"}, "without ports"),
        ({"SECATEUR_HOST": "0.0.0.0", "SECATEUR_NAMES": "*"}, "without ports"),
        ({"SECATEUR_HOST": "0.0.0.0", "SECATEUR_NAMES": "http://a.local"}, "without ports"),
        ({"SECATEUR_HOST": "classroom.local", "SECATEUR_NAMES": "classroom.local"}, "must be an address"),
        ({"SECATEUR_HOST": "", "SECATEUR_NAMES": "a"}, "must be an address"),
        ({"SECATEUR_NAMES": "classroom.local"}, "set SECATEUR_HOST too"),
    ],
)
def test_a_page_that_would_answer_wrongly_does_not_start(environment, message):
    with pytest.raises(SystemExit, match=message) as ended:
        read_site(environment)
    assert "\n" not in str(ended.value)


def test_a_space_answers_to_all_names_that_its_proxy_passes_on():
    assert read_site({"SPACE_ID": "ada/secateur"}) == Site(Mode.SPACE, None, None)
