"""The examples in the docstrings of the public API run."""

import doctest
import inspect
import sys

import pytest

import pruning
from tests.helpers.models import folder_of

RUN_AS_SCRIPTS = {"export"}
"""llama.cpp knows no tokenizer of a small model: a script in docs/examples makes the same calls with the real one's."""

SLOW = {"search", "iter_search"}


def examples_of(name):
    """The doctests of a public function, class or module, its methods included."""
    value = getattr(pruning, name)
    if not inspect.isfunction(value) and not inspect.isclass(value) and not inspect.ismodule(value):
        return []
    module = value if inspect.ismodule(value) else sys.modules[value.__module__]
    found = doctest.DocTestFinder().find(value, name, module=module, globs={"__name__": "__main__"})
    return [test for test in found if test.examples]


EXAMPLES = [test for name in pruning.__all__ for test in examples_of(name)]


def run(test):
    """Run the examples of one docstring; their output is that of the failures."""
    output = []
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    assert runner.tries == len(test.examples)


@pytest.fixture
def small_model(tmp_path, monkeypatch):
    """A folder in which `smollm2-135m`, the name that the examples use, is a small Llama."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").symlink_to(folder_of("llama"))
    monkeypatch.setattr("pruning.catalog.find", lambda name: None)


@pytest.fixture
def signed_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    return hub


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(test, id=test.name, marks=[pytest.mark.slow] if test.name in SLOW else [])
        for test in EXAMPLES
        if test.name not in RUN_AS_SCRIPTS
    ],
)
def test_example(test, small_model, signed_in):
    run(test)


def test_every_public_function_has_an_example_and_says_what_it_returns_and_raises():
    functions = {name: getattr(pruning, name) for name in pruning.__all__}
    functions = {name: value for name, value in functions.items() if inspect.isfunction(value)}
    assert {test.name for test in EXAMPLES} >= functions.keys()
    for name, function in functions.items():
        refers = "for the arguments and errors" in function.__doc__
        sections = [] if refers else ["Args:", "Raises:"]
        sections += [] if refers else ["Yields:" if inspect.isgeneratorfunction(function) else "Returns:"]
        assert [section for section in sections if section not in function.__doc__] == [], name


def test_options_of_public_functions_are_keyword_only():
    for name in pruning.__all__:
        value = getattr(pruning, name)
        if inspect.isfunction(value):
            parameters = inspect.signature(value).parameters
            for option in ("progress", "token", "seed", "tokens", "evaluate", "stopped"):
                assert (
                    option not in parameters or parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
                ), name
