"""Which requests may act for a visitor, and by which names the page answers."""

import pytest

from page.server.origins import (
    WrongHost,
    address_of,
    checked_host,
    header_values,
    may_use_cookies,
)
from page.server.settings import Mode, Site, read_site

OWNER = read_site({})
ROOM = read_site({"SECATEUR_HOST": "0.0.0.0", "SECATEUR_NAMES": "classroom.local,192.168.1.20"})
SPACE = Site(Mode.SPACE, None, None)
PROXY = [("host", "10.0.0.7:7860"), ("x-forwarded-host", "ada-page.hf.space"), ("x-forwarded-proto", "https")]


def scope_of(headers, method="POST", path="/gradio_api/queue/join", scheme="http"):
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": "http", "method": method, "path": path, "scheme": scheme, "headers": pairs}


def trusts(headers, site=SPACE, proxy=PROXY, **request):
    scope, host = checked_host(site, scope_of([*proxy, *headers], **request))
    return may_use_cookies(site, scope, host)


def test_the_page_s_own_requests_act_for_the_visitor():
    own = [
        ("origin", "https://ada-page.hf.space"),
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-mode", "cors"),
    ]
    assert trusts(own)
    assert trusts(own[:1])
    assert trusts(own[1:], method="GET")
    assert trusts([("origin", "https://ADA-page.hf.space:443")])


def test_programs_send_no_headers_of_browsers_and_act_for_themselves():
    assert trusts([])
    assert trusts([], OWNER, [("host", "127.0.0.1:7860")])


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "http://ada-page.hf.space",
        "https://ada-page.hf.space:8443",
        "https://ada-page.hf.space.evil.example",
        "https://evil.example/https://ada-page.hf.space",
        "https://ada-page.hf.space@evil.example",
        "https://bob-page.hf.space",
        "https://10.0.0.7:7860",
        "ada-page.hf.space",
        "file://",
        "chrome-extension://abcdef",
        "https://ada-page.hf.space, https://evil.example",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_another_origin_never_acts_for_the_visitor(origin, method):
    for name in ("origin", "Origin", "ORIGIN"):
        assert not trusts([(name, origin)], method=method)
        assert not trusts([("origin", "https://ada-page.hf.space"), (name, origin)], method=method)
        assert not trusts([(name, origin), ("sec-fetch-mode", "navigate")], method=method, path="/")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "made-up", ""])
@pytest.mark.parametrize("mode", ["cors", "no-cors", "same-origin", "websocket", "navigate"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/login/callback", "/logout", "/gradio_api/call/push/1", "//logout/"])
def test_of_another_site_only_a_link_to_the_page_acts_for_the_visitor(site, mode, method, path):
    headers = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode)]
    link = mode == "navigate" and method != "POST" and path in ("/", "/login/callback")
    assert trusts(headers, method=method, path=path) == link


def test_headers_that_are_sent_twice_are_not_believed():
    assert not trusts([("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")])
    twice = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-mode", "cors")]
    assert not trusts(twice, method="GET", path="/")


def test_a_space_without_its_proxy_has_the_origin_of_its_host():
    for host in ("localhost:7860", "127.0.0.1:7860"):
        assert trusts([("origin", f"http://{host}")], proxy=[("host", host)])
    assert trusts([("origin", "https://ada-page.hf.space")], proxy=[("host", "ada-page.hf.space")])
    assert not trusts([("origin", "http://ada-page.hf.space")], proxy=[("host", "ada-page.hf.space")])


def test_elsewhere_a_forwarded_host_is_not_believed_and_removed():
    headers = [
        ("host", "localhost:7860"),
        ("X-Forwarded-Host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "host=evil.example"),
        ("origin", "https://evil.example"),
    ]
    for site in (OWNER, ROOM):
        scope, host = checked_host(site, scope_of(headers))
        assert host == "localhost:7860"
        assert header_values(scope, "x-forwarded-host") == header_values(scope, "forwarded") == []
        assert not may_use_cookies(site, scope, host)


@pytest.mark.parametrize("forwarded", [["a.example", "b.example"], ["a.example, b.example"], ["a/b"], [""]])
def test_on_a_space_a_forwarded_host_that_is_not_one_host_is_removed(forwarded):
    headers = [("host", "ada-page.hf.space"), *(("x-forwarded-host", value) for value in forwarded)]
    scope, host = checked_host(SPACE, scope_of(headers))
    assert host == "ada-page.hf.space"
    assert not header_values(scope, "x-forwarded-host")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:7860", "[::1]", "[::1]:7860", "localhost."]
)
def test_the_page_answers_to_the_names_of_its_machine(host):
    for site in (OWNER, ROOM):
        assert checked_host(site, scope_of([("Host", host)]))[1] == host


@pytest.mark.parametrize("host", ["classroom.local", "Classroom.Local:7860", "192.168.1.20:7860"])
def test_in_a_room_the_page_answers_to_the_names_that_were_set(host):
    assert checked_host(ROOM, scope_of([("host", host)]))[1] == host
    with pytest.raises(WrongHost, match="localhost"):
        checked_host(OWNER, scope_of([("host", host)]))


@pytest.mark.parametrize(
    "host",
    [
        "rebind.evil.example:7860",
        "localhost.evil.example",
        "evil.localhost.",
        "127.0.0.1.nip.io",
        "0.0.0.0:7860",
        "127.0.0.2",
        "[::]",
        "[::1",
        "localhost:7860:1",
        "localhost:port",
        "user@localhost",
        "localhost/evil",
        "local host",
        "",
    ],
)
def test_other_names_are_refused_in_a_sentence(host):
    for site in (OWNER, ROOM):
        with pytest.raises(WrongHost, match=r"\.$"):
            checked_host(site, scope_of([("host", host)]))


def test_a_request_names_exactly_one_host():
    for headers in (
        [],
        [("host", "localhost"), ("Host", "localhost")],
        [("host", "localhost"), ("host", "evil")],
    ):
        for site in (OWNER, SPACE):
            with pytest.raises(WrongHost, match="one host"):
                checked_host(site, scope_of(headers))


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("1.1.1.1,[2001:db8:1:2:3:4:5:6]:4711", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, made-up", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_on_a_space_a_visitor_s_address_is_the_one_that_its_proxy_saw(forwarded, address):
    assert address_of(SPACE, {"x-forwarded-for": forwarded}, "10.0.0.1") == address
    for site in (OWNER, ROOM):
        assert address_of(site, {"x-forwarded-for": forwarded}, "192.168.1.9") == "192.168.1.9"
