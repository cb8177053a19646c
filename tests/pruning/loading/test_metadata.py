"""The license of a card and the kept layers of a recipe, read from YAML that may be hostile."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.loading.metadata import kept_layers_in, license_in, plain_license

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{previous}'] * 10)}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)

CARDS = {
    "plain": ("---\nlicense: mit\n---\n# Model\n", "mit"),
    "with a byte order mark": ("\ufeff---\nlicense: mit\n---\n", "mit"),
    "quoted": ("---\ntags: [a, {license: no}]\nlicense: 'apache-2.0'\n---\n", "apache-2.0"),
    "cut short": ("---\nlicense: mit\ntags:\n" + "- x\n" * 10_000, "mit"),
    "a list": ("---\nlicense: [mit]\n---\n", None),
    "a mapping": ("---\nlicense: {a: b}\n---\n", None),
    "a number": ("---\nlicense: 1.0\n---\n", None),
    "true": ("---\nlicense: true\n---\n", None),
    "of a tag": ("---\nlicense: !!python/name:os.system x\n---\n", None),
    "several lines": ('---\nlicense: "a\\nb"\n---\n', None),
    "long": (f"---\nlicense: {'x' * 200}\n---\n", None),
    "a bomb": (f"---\n{BOMB}license: *i\n---\n", None),
    "after a bomb": (f"---\n{BOMB}license: mit\n---\n", "mit"),
    "merged": ("---\nx: &x {license: no}\n<<: *x\n---\n", None),
    "nested deeply": ("---\nx: " + "[" * 7_000 + "\n---\n", None),
    "far behind": ("---\n" + "x: y\n" * 5_000 + "license: mit\n---\n", None),
    "a nested key": ("---\nbase:\n  license: mit\n---\n", None),
    "not YAML": ("---\n\tlicense: : {\n---\n", None),
    "no front matter": ("license: mit\n", None),
}


@pytest.mark.parametrize("case", CARDS)
def test_the_license_of_a_card_is_one_short_text_or_none(tmp_path, case):
    card, license = CARDS[case]
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert license_in(tmp_path) == license


def test_a_folder_without_a_card_has_no_license(tmp_path):
    assert license_in(tmp_path) is None
    (tmp_path / "README.md").mkdir()
    assert license_in(tmp_path) is None


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_bytes_of_a_card_raise(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("card")
    (folder / "README.md").write_bytes(b"---\n" + content)
    (folder / "recipe.yaml").write_bytes(content)
    assert license_in(folder) is None or isinstance(license_in(folder), str)
    assert kept_layers_in(folder) is None


@pytest.mark.parametrize("value", [None, 1, ["mit"], {"a": 1}, "", "x" * 200, "a\nb", "\0"])
def test_what_is_not_a_license(value):
    assert plain_license(value) is None


RECIPES = {
    "a list": ("base: gpt2\nkept_layers:\n- 0\n- 2\nsteps: []\n", (0, 2)),
    "in one line": ("kept_layers: [0, 2]\n", (0, 2)),
    "empty": ("kept_layers: []\n", None),
    "nested": ("kept_layers: [[0]]\n", None),
    "words": ("kept_layers: [a]\n", None),
    "huge": (f"kept_layers: [{'9' * 5_000}]\n", None),
    "many": (f"kept_layers: [{'0, ' * 5_000}0]\n", None),
    "too long a file": (f"kept_layers: [0]\n# {'x' * 100_000}", None),
    "a bomb": (f"{BOMB}kept_layers: *i\n", None),
    "missing": ("base: gpt2\n", None),
}


@pytest.mark.parametrize("case", RECIPES)
def test_kept_layers_are_a_short_list_of_numbers_or_none(tmp_path, case):
    recipe, layers = RECIPES[case]
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert kept_layers_in(tmp_path) == layers
