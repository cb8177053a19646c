"""What the card carries over from the base, and what programs read in it."""

from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

import pruning
from pruning.evaluation.answers import Answers, Judged
from pruning.saving.card import model_card, read_card
from tests.helpers.models import folder_of
from tests.helpers.saved import content, cut

FOREIGN = "---\nlicense: mit\nmodel-index:\n- name: m\n  results: []\n---\n# Somebody else's model\n"


def card_of_pruned(pruned):
    return model_card("cut", source=pruned.source, recipe=pruned.recipe, report=pruned.report)


@pytest.fixture
def card_of(hub, tmp_path):
    """The front matter of a model pruned from one on the Hub whose card begins with these lines."""

    def make(*lines):
        readme = "\n".join(["---", *lines, "---", ""]).encode()
        hub.add_model("ada/tiny", content(folder_of("llama")) | {"README.md": readme})
        base = pruning.load("ada/tiny", token=False)
        folder = cut(base).save(tmp_path / "cut")
        front = (folder / "README.md").read_text().split("---\n")[1]
        return front, base.source.revision

    return make


def test_a_licence_that_the_hub_does_not_know_keeps_its_name_and_text(card_of):
    lines = ("license: other", "license_name: tiny-licence", "license_link: LICENSE")
    front, revision = card_of(*lines)
    assert "license: other\n" in front
    assert "license_name: tiny-licence\n" in front
    assert f"license_link: https://huggingface.co/ada/tiny/blob/{revision}/LICENSE\n" in front


def test_an_address_of_a_licence_stays(card_of):
    link = "https://example.org/licence"
    front, _ = card_of("license: other", "license_name: tiny", f"license_link: {link}")
    assert f"license_link: {link}\n" in front


@pytest.mark.parametrize(
    "lines", [["license: other"], ["license: mit", "license_name: tiny"], ["license_name: tiny"]]
)
def test_nothing_is_made_up_about_a_licence(card_of, lines):
    front, _ = card_of(*lines)
    assert ("license: " in front) == ("license: " in "\n".join(lines))
    assert "license_name" not in front
    assert "license_link" not in front


def test_the_numbers_come_back(tmp_path):
    pruned = cut(pruning.load(str(folder_of("qwen2"))), evaluate=True)
    stated = read_card(pruned.save(tmp_path / "cut"))
    assert stated.parameters == pruned.report.after.parameters
    measured = pruned.report.after.quality.genres
    assert stated.perplexities.keys() == measured.keys()
    for genre, said in stated.perplexities.items():
        assert said.value == pytest.approx(measured[genre].value, abs=1e-3)
        assert (said.tokens, said.window) == (measured[genre].tokens, measured[genre].window)


def test_another_vocabulary_is_measured_by_the_byte(tmp_path):
    base = pruning.load(str(folder_of("qwen2")))
    size = len(base.tokenizer) - 20
    recipe = pruning.Recipe(base=base.source.name, steps=[pruning.Vocabulary(size=size)])
    pruned = pruning.run(recipe, base=base)
    text = (pruned.save(tmp_path / "cut") / "README.md").read_text()
    before, after = pruned.report.before.quality.overall, pruned.report.after.quality.overall
    assert f"| {before.bits_per_byte:.2f} | {after.bits_per_byte:.2f} |" in text
    assert f"| {before.value:.2f} | {after.value:.2f} |" not in text
    assert "type: bits_per_byte\n" in text
    assert read_card(tmp_path / "cut").perplexities.keys() == pruned.report.after.quality.genres.keys()


def test_a_distilled_model_is_not_said_to_be_untrained():
    pruned = cut(pruning.load(str(folder_of("qwen2"))))
    assert "No retraining: what was lost" in str(card_of_pruned(pruned))
    recipe = pruned.recipe.model_copy(update={"steps": (*pruned.recipe.steps, pruning.Distillation(steps=1))})
    assert "No retraining beyond the recipe's distillation." in str(
        card_of_pruned(replace(pruned, recipe=recipe))
    )


def test_the_card_of_somebody_else_states_nothing(tmp_path):
    (tmp_path / "README.md").write_text(FOREIGN)
    stated = read_card(tmp_path)
    assert (stated.recipe, stated.parameters, stated.perplexities) == (None, None, {})


@pytest.mark.parametrize(
    "text", [None, "---\nsecateur: 3\n---\n", "---\nmodel-index: 3\n---\n", "---\n{\n---\n", "\x00\xff"]
)
def test_a_card_that_cannot_be_read(tmp_path, text):
    if text is not None:
        (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    with pytest.raises(pruning.ModelError, match=r"README\.md") as error:
        read_card(tmp_path)
    assert "\n" not in str(error.value)


BOMB = ["license: other", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)
]


@pytest.mark.parametrize(
    "lines",
    [
        [*BOMB, "license_name: *a8", "license_link: *a8"],
        ["license: other", f"license_name: {'x' * 200}", f"license_link: https://x.org/{'y' * 200}"],
        ["license: other", 'license_name: "a\\nb: c"', 'license_link: "javascript:alert(1)"'],
        ["license: other", "license_name: {a: b}", "license_link: [x]"],
        ["license: other", "license_name: 3", 'license_link: "https://x.org/a b"'],
        ["license: other", "license_name: {", "x"],
    ],
)
def test_only_short_single_lines_of_another_card_are_taken_over(tmp_path, lines):
    front = front_of_pruned(tmp_path, lines)
    assert front["license"] == "other"
    assert not front.keys() & {"license_name", "license_link"}


def test_a_license_name_cannot_add_a_line_or_a_key(tmp_path):
    name = "tiny: yes # [x] 'y'"
    front = front_of_pruned(tmp_path, [f'license_name: "{name}"', "license_link: LICENSE"])
    assert (front["license_name"], front["license_link"]) == (name, "LICENSE")


def front_of_pruned(folder, lines):
    """The front matter of a model whose base lies in a folder and has a card that begins with these lines."""
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", ""]))
    pruned = cut(pruning.load(str(folder_of("qwen2"))))
    source = replace(pruned.source, license="other", folder=folder)
    text = str(model_card("cut", source=source, recipe=pruned.recipe, report=pruned.report))
    assert len(text) < 20_000
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    "license", [["mit"], {"a": 1}, 3, "x" * 200, "mit\nbase_model: evil/model", "mit\x00"]
)
def test_a_license_that_is_no_short_line_is_left_out(license):
    pruned = cut(pruning.load(str(folder_of("qwen2"))))
    source = replace(pruned.source, license=license)
    card = model_card("cut", source=source, recipe=pruned.recipe, report=pruned.report)
    assert card.data.license is None
    assert "evil" not in str(card)


def test_names_are_text_in_the_card():
    pruned = cut(pruning.load(str(folder_of("qwen2"))))
    name = "x\n\n# Heading <script>alert(1)</script> [a](http://example.org) __b__ my_model"
    source = replace(pruned.source, hub_id="a](http://evil.org)\n\n<b>")
    text = str(model_card(name, source=source, recipe=pruned.recipe, report=pruned.report))
    body = MarkdownIt("commonmark").render(text.split("\n---\n", 1)[1])
    assert "<script>" not in body
    assert "<b>" not in body
    assert 'href="http://e' not in body
    assert "<strong>b" not in body
    assert body.count("<h1>") == 1
    assert "my_model" in text


@pytest.mark.parametrize("claim", ["parameters: many", "parameters: [1]", "recipe: [x, y]", "recipe: {a: b}"])
def test_claims_of_another_kind_are_none(tmp_path, claim):
    (tmp_path / "README.md").write_text(f"---\nsecateur:\n  {claim}\n---\n")
    stated = read_card(tmp_path)
    assert (stated.recipe, stated.parameters) == (None, None)


def test_a_card_of_a_million_lines_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "README.md").write_text("---\n" + "- x\n" * 1_000_000 + "---\n")
    with pytest.raises(pruning.ModelError, match="larger than 1,000,000 bytes"):
        read_card(tmp_path)


def judged(*good):
    return Answers(tuple(Judged("?", "text", each, ended=True, loops=False, tokens=(1, 2)) for each in good))


def test_a_card_says_what_became_of_answers_and_warns_if_most_are_bad(tmp_path):
    pruned = cut(pruning.load(str(folder_of("qwen2"))))
    before = replace(pruned.report.before, answers=judged(True, True, True, False))
    after = replace(pruned.report.after, answers=judged(True, False, False, True))
    asked = replace(pruned, report=replace(pruned.report, before=before, after=after))
    card = card_of_pruned(asked).content
    assert "| 4 | 3 | 2 | of the base's, 33% are kept (1% to 91%) |" in card
    assert "only 33% of the original's good answers are still good" in card
    assert asked.report.to_dict()["after"]["answers"]["good"] == 2


def test_a_metric_that_does_not_exist_is_refused_before_any_work():
    with pytest.raises(pruning.RecipeError, match="no metric 'answer'"):
        pruning.run("no/such-model", steps=pruning.Neurons(fraction=0.2), metrics=["answer"])
