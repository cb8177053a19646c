"""The head of the page: our own title, icon and preview, whatever the address opens."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from page.html.theme import FAVICON, PREVIEW
from page.server import links
from page.server.front_page import DESCRIPTION, MOST_PAGES, FrontPage
from pruning import Neurons, Recipe
from tests.page.html.samples import Page

GRADIOS = (
    '<!doctype html><html><head><title>{{ title }}</title><meta property="og:title" content="Gradio" />'
    '<meta\n\tproperty="og:image"\n\tcontent="https://example.org/banner.png"\n/><meta name="twitter:title" '
    'content="Gradio" /></head><body>The <head> of this page</body></html>'
)
FIRST_LOOK = '<div id="first-look"></div>'
SETTINGS = {"head": "<style>p { }</style>", "first_look": FIRST_LOOK, "picture": PREVIEW}
OPENS_SOMETHING_ELSE = {"lesson", "only", "recipe", "room", "page", "deep_link"}
RECIPE = Recipe(base="smollm2-135m", steps=[Neurons(fraction=0.2)])


@pytest.fixture
def client():
    routes = [
        Route("/", lambda request: HTMLResponse(GRADIOS)),
        Route("/config", lambda request: JSONResponse({"head": "</head>"})),
        Route("/text", lambda request: PlainTextResponse("</head>")),
    ]
    middleware = [Middleware(FrontPage, **SETTINGS)]
    return TestClient(Starlette(routes=routes, middleware=middleware), base_url="https://pruner.example")


def head_of(client, **query):
    """The title and the tags of a page, by name."""
    answer = client.get("/", params=query)
    assert len(answer.content) == int(answer.headers["content-length"])
    head, _, rest = answer.text.partition("</head>")
    look = "" if any(query.get(name) for name in OPENS_SOMETHING_ELSE) else FIRST_LOOK
    assert rest == f"<body>{look}The <head> of this page</body></html>"
    assert "Gradio" not in head
    assert head.endswith("<style>p { }</style>")
    page = Page(head.partition("<head>")[2].replace("<meta", "<br"))
    return page.pieces[0], dict(zip(page.values("property"), page.values("content"), strict=False))


def test_the_page_previews_as_itself(client):
    title, tags = head_of(client)
    assert title == tags["og:title"] == "Secateur"
    assert tags["og:description"] == DESCRIPTION
    assert tags["og:image"] == "https://pruner.example/preview.png"
    picture = client.get("/preview.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == PREVIEW.read_bytes()
    assert FAVICON.read_text().startswith("<svg")


@pytest.mark.parametrize("lesson", ["5", "05", "05-ask-the-data"])
def test_a_lesson_previews_with_its_title(client, lesson):
    title, tags = head_of(client, lesson=lesson)
    assert title == "5. Ask the data · Secateur"
    assert tags["og:title"] == "5. Ask the data"
    assert tags["og:description"].startswith("Let the model read")


def test_a_recipe_previews_with_its_steps(client):
    _, tags = head_of(client, recipe=links.encode(RECIPE))
    assert tags["og:title"] == f"smollm2-135m without {RECIPE.steps[0].describe()}"


@pytest.mark.parametrize(
    "query",
    [
        *({"lesson": value} for value in ("99", "0", "5x", '"><script>', "")),
        *({"recipe": value} for value in ("x", '"><script>', links.encode(RECIPE)[:-9], "e30", "W10")),
    ],
)
def test_an_address_that_opens_nothing_previews_as_the_page(client, query):
    assert head_of(client, **query)[1]["og:title"] == "Secateur"


def test_markup_in_a_recipe_stays_text(client):
    recipe = Recipe(base='"><script>alert(1)</script>', steps=RECIPE.steps)
    assert "<script>" not in client.get("/", params={"recipe": links.encode(recipe)}).text


@pytest.fixture
def made():
    """How often the page was made, and a client of it; with `?page=`, another page is, and with `cookie`, one's own."""
    count = []

    def make(request):
        count.append(request.headers["host"])
        answer = HTMLResponse(
            GRADIOS.replace("this page", f"{request.headers['host']} {request.query_params}")
        )
        if "cookie" in request.headers:
            answer.set_cookie("mine", "1")
        return answer

    middleware = [Middleware(FrontPage, **SETTINGS)]
    app = Starlette(routes=[Route("/", make)], middleware=middleware)
    return count, TestClient(app, base_url="https://pruner.example")


def test_the_page_is_made_once_for_each_name_by_which_it_is_reached(made):
    count, client = made
    first, again = client.get("/").text, client.get("/?lesson=5").text
    assert "<title>Secateur</title>" in first
    assert "<title>5. Ask the data · Secateur</title>" in again
    assert FIRST_LOOK in first
    assert first.replace(FIRST_LOOK, "").partition("</head>")[2] == again.partition("</head>")[2]
    for name in ("other.example", "other.example", "pruner.example"):
        assert f"The <head> of {name} <" in client.get("/", headers={"host": name}).text
    assert count == ["pruner.example", "other.example"]
    for number in range(MOST_PAGES):
        client.get("/", headers={"x-forwarded-host": f"{number}.example"})
    client.get("/")
    assert len(count) == 3 + MOST_PAGES


@pytest.mark.parametrize("query", ["page=room", "deep_link=x"])
def test_another_page_is_not_shown_to_the_next_who_opens_this_one(made, query):
    count, client = made
    assert "The <head> of pruner.example page=room" in client.get("/?page=room").text
    assert "page=room" not in client.get("/").text
    client.get(f"/?{query}")
    client.get(f"/?{query}")
    assert len(count) == 4


def test_a_page_that_sets_a_cookie_is_for_one_visitor(made):
    count, client = made
    for _ in range(2):
        assert "mine=1" in client.get("/", headers={"cookie": "a=b"}).headers["set-cookie"]
    assert len(count) == 2


@pytest.mark.parametrize("path", ["/config", "/text"])
def test_what_is_not_the_page_is_left_as_it_is(client, path):
    assert "</head>" in client.get(path).text
    assert "og:" not in client.get(path).text
