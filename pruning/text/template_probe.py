"""Render a stranger's chat template in a limited process of its own, which `pruning.limited_child` starts.

A chat template is a program: it can loop for years and take any amount of memory. It is rendered in the sandbox that
transformers uses, at a fixed date. This program imports nothing but the standard library and jinja2.

It reads a JSON object from the standard input: `template`, `variables` (the special tokens) and `probes`, each with
`messages`, `add_generation_prompt` and `date`. It prints a JSON object with either `failure`, one of `FAILURES`, if not
even the first probe is rendered, or `results`: for each probe a `text`, or a `failure` of this probe alone.
"""

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

FAILURES = ("syntax", "memory", "forbidden", "raises", "long")

EXTRA_CHARACTERS = 40_000
"""How much longer than its messages a rendered conversation may be."""


class Generation(Extension):
    """The tag `{% generation %}`, by which transformers finds the tokens of the assistant: it writes its body."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body as a block of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("write"), [], [], body).set_lineno(line)

    def write(self, caller: Callable[[], str]) -> str:
        """Return the rendered body."""
        return caller()


class PlainDict:
    """What a template may do with `dict`: make one."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dict with the same value for each key."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """A namespace without names that begin with an underscore."""

    # Without a `self`, so that a template may pass one.
    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a name in a namespace begins with an underscore")


def make_environment(clock: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """Return the sandbox, with what transformers adds to it.

    Args:
        clock: Returns the time that `strftime_now` prints.
    """

    def raise_exception(message: object) -> None:
        raise TemplateError(str(message))

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: clock().strftime(form),
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return environment


def render_all(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template makes of each probe; see the module."""
    date = ""
    environment = make_environment(lambda: datetime.fromisoformat(date))
    try:
        template = environment.from_string(request["template"])
    except TemplateSyntaxError:
        return {"failure": "syntax"}
    results: list[dict[str, str]] = []
    for probe in request["probes"]:
        date = probe["date"]
        values = {"tools": None, "documents": None, **request["variables"]}
        values |= {"messages": probe["messages"], "add_generation_prompt": probe["add_generation_prompt"]}
        limit = EXTRA_CHARACTERS + 2 * sum(len(message["content"]) for message in probe["messages"])
        result = _render(template, values, limit)
        if not results and "failure" in result:
            return result  # The others would take as long, and change nothing.
        results.append(result)
    return {"results": results}


def _render(template: Template, values: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Return the rendered text, of at most `limit` characters, or the failure."""
    rendered: list[str] = []
    length = 0
    try:
        for piece in template.generate(**values):
            length += len(piece)
            if length > limit:
                return {"failure": "long"}
            rendered.append(piece)
    except MemoryError:
        raise
    except SecurityError:
        return {"failure": "forbidden"}
    except Exception:
        return {"failure": "raises"}
    return {"text": "".join(rendered)}


def main() -> dict[str, Any]:
    """Return the answer to the request on the standard input."""
    try:
        return render_all(json.loads(sys.stdin.buffer.read()))
    except MemoryError:
        return {"failure": "memory"}
    except Exception:
        return {"failure": "syntax"}


if __name__ == "__main__":
    print(json.dumps(main()), flush=True)
