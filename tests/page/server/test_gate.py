"""The gate in front of a Gradio app: names, cookies, answers to other sites, and sessions."""

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.routes import App
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from page.layout import build_page
from page.server import api, session
from page.server.audience import Audience
from page.server.middleware import RequestCheck, request_middleware
from page.server.settings import Mode, Site, read_site
from page.server.warm_up import WarmUp
from pruning import Neurons, Recipe

OWNER = read_site({})
ROOM = read_site({"SECATEUR_HOST": "0.0.0.0", "SECATEUR_NAMES": "classroom.local"})
SPACE = Site(Mode.SPACE, None, None)
HOSTS = {OWNER: "localhost:7860", ROOM: "classroom.local:7860", SPACE: "ada-page.hf.space"}
EVIL = {"origin": "https://evil.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}


def seen(request: gr.Request) -> dict:
    """Return what reaches a function of the page."""
    names = "cookie", "x-forwarded-host"
    return {name: request.headers.get(name) for name in names}


@pytest.fixture
def client_of():
    """`client_of(site)` is a browser in front of a page on a site."""
    clients = []

    def open_client(site, **headers):
        with gr.Blocks(analytics_enabled=False) as demo:
            gr.api(seen, queue=False)
            gr.api(lambda: "joined", api_name="join")
        app = App.create_app(demo.queue(), app_kwargs={"middleware": request_middleware(demo, site)})
        scheme = "https" if site is SPACE else "http"
        client = TestClient(app, f"{scheme}://{HOSTS[site]}", headers={"cookie": "session=ada", **headers})
        client.__enter__()
        clients.append(client)
        return client

    yield open_client
    for client in clients:
        client.__exit__(None, None, None)


def call(client, **headers):
    return client.post("/gradio_api/run/seen", json={"data": []}, headers=headers)


@pytest.mark.parametrize("site", HOSTS, ids=lambda site: site.mode.value)
def test_the_page_s_own_requests_and_programs_keep_their_cookies(client_of, site):
    client = client_of(site)
    own = {"origin": str(client.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    for headers in ({}, own):
        assert call(client, **headers).json()["data"][0]["cookie"] == "session=ada"
    assert client.get("/config", headers=LINK).status_code == 200


def test_on_a_space_another_site_is_answered_without_cookies_and_credentials(client_of):
    client = client_of(SPACE)
    for headers in (EVIL, {"origin": "null"}, {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}):
        answer = call(client, **headers)
        assert answer.json()["data"][0]["cookie"] is None
        assert "access-control-allow-credentials" not in answer.headers
        assert "set-cookie" not in answer.headers
    assert (
        call(client, origin="https://ada-page.hf.space").headers["access-control-allow-credentials"] == "true"
    )


def test_another_site_gets_no_permission_to_send_credentials_or_a_proxy_s_headers(client_of):
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type, X-Forwarded-Host, x-hub-token",
    }
    answer = client_of(SPACE).options("/gradio_api/queue/join", headers=EVIL | asked)
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["access-control-allow-headers"] == "content-type, x-hub-token"
    for site in (OWNER, ROOM):
        answer = client_of(site).options("/gradio_api/queue/join", headers=EVIL | asked)
        assert answer.status_code == 403
        assert not any(name.startswith("access-control") and "credentials" in name for name in answer.headers)


@pytest.mark.parametrize("site", [OWNER, ROOM], ids=["owner", "room"])
def test_elsewhere_another_site_is_refused_and_links_to_the_page_are_not(client_of, site):
    client = client_of(site)
    assert call(client, **EVIL).status_code == 403
    assert call(client, origin="null").status_code == 403
    assert client.get("/gradio_api/call/seen/1", headers=LINK).status_code == 403
    assert client.get("/config", headers=LINK).status_code == 200


@pytest.mark.parametrize("site", [OWNER, ROOM], ids=["owner", "room"])
def test_the_page_is_not_served_by_a_borrowed_name(client_of, site):
    client = client_of(site)
    for method, path in (("GET", "/"), ("POST", "/gradio_api/run/seen"), ("GET", "/gradio_api/mcp/")):
        answer = client.request(method, path, headers={"host": "rebind.evil.example:7860"})
        assert answer.status_code == 421
        assert "does not answer to the name 'rebind.evil.example'" in answer.json()["detail"]
    forwarded = call(client, **{"x-forwarded-host": "evil.example"})
    assert forwarded.json()["data"][0]["x-forwarded-host"] is None


def test_a_space_answers_to_the_name_that_its_proxy_forwards(client_of):
    forwarded = {
        "host": "10.0.0.7:7860",
        "x-forwarded-host": "my.domain.example",
        "x-forwarded-proto": "https",
    }
    for origin, cookie in (("https://my.domain.example", "session=ada"), ("https://ada-page.hf.space", None)):
        answer = call(client_of(SPACE), **forwarded, origin=origin)
        assert answer.json()["data"][0] == {"cookie": cookie, "x-forwarded-host": "my.domain.example"}


def test_there_are_no_websockets(client_of):
    with pytest.raises(WebSocketDisconnect) as closed, client_of(OWNER).websocket_connect("/"):
        pass
    assert closed.value.code == 1008


def test_thousands_of_sessions_do_not_push_out_one_that_listens(client_of, monkeypatch):
    audience = Audience(size=20, address_size=10)
    monkeypatch.setattr(RequestCheck.__init__, "__defaults__", (SPACE, audience))
    client = client_of(SPACE)
    demo = client.app.get_blocks()
    messages = demo._queue.pending_messages_per_session
    messages.max_size = 30
    (number,) = (index for index, function in demo.fns.items() if function.api_name == "join")

    def join(name):
        body = {"data": [], "fn_index": number, "session_hash": name}
        address = {"x-forwarded-for": f"203.0.113.{hash(name) % 3}"}
        return client.post("/gradio_api/queue/join", json=body, headers=address).status_code

    with audience.stream("listener", "home"):
        assert join("listener") == 200
        for index in range(60):
            assert join(f"made-up-{index}") == 200
        assert "listener" in messages
        assert len(audience) <= 20


@pytest.fixture
def teachers_machine(monkeypatch, hub):
    """A machine on which a teacher is signed in, and whose page is on the network."""
    hub.add_user("teacher-token", "teacher")
    monkeypatch.setattr(session, "SITE", ROOM)
    monkeypatch.setattr(session, "saved_token", lambda: "teacher-token")
    monkeypatch.setenv("HF_TOKEN", "teacher-token")
    return hub


def test_a_student_does_not_publish_as_the_teacher(teachers_machine):
    recipe = Recipe(base="smollm2-135m", steps=(Neurons(fraction=0.2),))
    student = SimpleNamespace(session_hash="student", headers={}, client=SimpleNamespace(host="192.168.1.9"))
    (push,) = (
        function
        for function in build_page(WarmUp()).fns.values()
        if function.api_name.startswith("push") and function.api_visibility == "private"
    )
    (update,) = push.fn(student, None, recipe, None, "", "teacher/gift", False, "")
    assert any("your own Hub token" in str(value) for value in update.values())
    with pytest.raises(gr.Error, match="your own Hub token"):
        asyncio.run(api.push(student, "teacher/gift", recipe.to_yaml(), False))
    assert teachers_machine.repos == {}
