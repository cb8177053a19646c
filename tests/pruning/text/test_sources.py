"""The user's own text in whatever form it is given."""

import hashlib
import json

import datasets
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pruning
from pruning import Calibration, Neurons, Recipe, RecipeError
from pruning.calibration.calibrate import windows_of
from pruning.loading.load import LoadedModel
from pruning.text.chat_learning import learn_chat_format
from pruning.text.passages import passage
from pruning.text.sources import read_text
from tests.helpers.chat import named
from tests.helpers.models import loaded, tiny

TEXTS = passage("story", "calibration")[:6000].split("\n\n")
CHAT = [
    [
        {"role": "user", "content": f"What is {number} and {number}?"},
        {"role": "assistant", "content": f"It is {2 * number}, a number that is even, as all doubles are."},
    ]
    for number in range(40)
]
ROWS = torch.randint(3, 300, (12, 48), generator=torch.Generator().manual_seed(0))


def chatting():
    """A small model whose tokenizer has a chat template."""
    words = named("chatml")
    return LoadedModel(tiny("llama", vocab_size=len(words)), words, loaded("llama").source, torch.float32)


def write(folder, rows, name="data.jsonl"):
    file = folder / name
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_texts_are_read_from_a_list_a_file_rows_and_a_dataset(tmp_path):
    rows = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
    sources = [
        TEXTS,
        iter(TEXTS),
        rows,
        write(tmp_path, rows),
        datasets.Dataset.from_list(rows),
        DataLoader(TEXTS, batch_size=4),
    ]
    texts = {Calibration.of(source).content for source in sources}
    assert texts == {"\n\n".join(TEXTS)}
    file = tmp_path / "story.txt"
    file.write_text("\n\n".join(TEXTS))
    assert Calibration.of(file).content in texts
    assert Calibration.of(file).address == "story.txt"


def test_conversations_are_written_in_the_chat_format(tmp_path):
    rows = [{"messages": messages} for messages in CHAT]
    pairs = [{"prompt": chat[0]["content"], "completion": chat[1]["content"]} for chat in CHAT]
    sources = [
        CHAT,
        rows,
        pairs,
        write(tmp_path, rows),
        write(tmp_path, pairs, "pairs.jsonl"),
        datasets.Dataset.from_list(rows),
        [{"prompt": chat[:1], "completion": chat[1:]} for chat in CHAT],
    ]
    made = [Calibration.of(source, window=128) for source in sources]
    assert {calibration.kind for calibration in made} == {"messages"}
    assert len({calibration.sha256 for calibration in made}) == 1
    base = chatting()
    windows = windows_of(base, made[0])
    chat_format = learn_chat_format(base.tokenizer)
    expected = chat_format.encode(base.tokenizer, CHAT[0], add_generation_prompt=False)
    assert windows.fitting[0][: len(expected)].tolist() == expected
    assert max(map(len, windows.fitting + windows.heldout)) <= 128
    with pytest.raises(RecipeError, match="cannot chat"):
        windows_of(loaded("llama"), made[0])


def test_one_conversation_is_a_list_of_messages():
    one = Calibration.of([message for chat in CHAT for message in chat])
    assert json.loads(one.content) == [message for chat in CHAT for message in chat]


def test_tokens_are_read_as_they_are():
    mask = torch.ones_like(ROWS)
    mask[0, 40:] = 0
    sources = [
        ROWS,
        [ROWS[:6], ROWS[6:]],
        ROWS.tolist(),
        [{"input_ids": ROWS}],
        datasets.Dataset.from_dict({"input_ids": ROWS.tolist(), "text": ["x"] * len(ROWS)}),
        DataLoader(TensorDataset(ROWS), batch_size=5),
        DataLoader(
            datasets.Dataset.from_dict({"input_ids": ROWS.tolist()}).with_format("torch"), batch_size=5
        ),
    ]
    made = [Calibration.of(source) for source in sources]
    assert {(calibration.kind, calibration.sha256) for calibration in made} == {("tokens", made[0].sha256)}
    windows = windows_of(loaded("llama"), made[0])
    assert torch.equal(torch.stack(windows.fitting[:7]), ROWS[:7])
    assert torch.equal(windows.heldout[0], ROWS[7])
    padded = Calibration.of([{"input_ids": ROWS, "attention_mask": mask}])
    assert windows_of(loaded("llama"), padded).fitting[0].tolist() == ROWS[0, :40].tolist()


def test_what_has_no_end_is_read_as_far_as_needed():
    def forever():
        while True:
            yield ROWS

    assert len(Calibration.of(forever(), tokens=500).content.split("\n")) <= 12


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "empty"),
        (iter(()), "empty"),
        (datasets.Dataset.from_dict({"text": []}), "empty"),
        ({"train": TEXTS}, "the parts train"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}), "Give one of them"),
        ([3.5], "not known"),
        (7, "not a calibration text"),
        ([{"body": "x"}], "not known"),
        (["a", 3], "Row 2"),
        ([CHAT[0], "x"], "Conversation 2"),
        ([[{"role": "user", "content": ""}]], "Conversation 1"),
        ([ROWS, "x"], "Batch 2"),
        ("no-such-text", "neither a file nor"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(source, message):
    with pytest.raises(RecipeError, match=message) as refusal:
        Calibration.of(source)
    assert "\n" not in str(refusal.value)


def test_damaged_lines_are_named(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "fine"}\n\n{"text": \n')
    with pytest.raises(RecipeError, match=r"Line 3 of data.jsonl"):
        Calibration.of(file)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.full((2, 1100), 5), "1,100 tokens, and the model's context is 1,024"),
        (torch.full((8, 100), 5000), "holds the id 5000"),
        (torch.full((2, 20), 5), "has 40 tokens; at least 256"),
    ],
    ids=["too long", "beyond the vocabulary", "too few"],
)
def test_tokens_that_the_model_cannot_read_are_refused(rows, message):
    with pytest.raises(RecipeError, match=message):
        pruning.prune(loaded("llama"), steps=Neurons(fraction=0.5), calibration=rows)


def test_the_recipe_records_a_digest_and_an_address_and_takes_the_text_again(tmp_path):
    file = write(tmp_path, [{"messages": messages} for messages in CHAT])
    made = Calibration.of(file, window=128)
    recipe = Recipe(base="x", steps=[Neurons(fraction=0.5)], calibration=made)
    again = Recipe.parse(recipe.to_yaml())
    assert (again.calibration.address, again.calibration.kind) == ("data.jsonl", "messages")
    assert again.digest == recipe.digest
    assert again.with_custom_text(made.content).calibration == made
    with pytest.raises(RecipeError, match=r"data\.jsonl"):
        pruning.prune(loaded("llama"), recipe=again)
    plain = Recipe(base="x", steps=[Neurons(fraction=0.5)], calibration=Calibration.custom("a text"))
    assert "kind" not in plain.canonical()["calibration"]


@pytest.mark.parametrize(("kind", "content"), [("messages", "3"), ("messages", "{"), ("tokens", '["a"]')])
def test_a_content_of_another_kind_is_refused(kind, content):
    choice = Calibration.custom(content, kind=kind)
    with pytest.raises(RecipeError):
        windows_of(chatting(), choice)


def test_a_model_is_calibrated_on_a_list():
    pruned = pruning.prune(
        loaded("llama"), steps=Neurons(fraction=0.5, criterion="activation"), calibration=TEXTS
    )
    assert pruned.recipe.calibration.sha256
    assert pruned.recipe.calibration.text == "custom"


@pytest.mark.parametrize("address", ["a\nb", "", "x" * 400])
def test_an_address_is_one_printable_line(address):
    with pytest.raises(RecipeError, match="address"):
        Calibration.custom("a text", address=address)


def test_a_dataset_on_the_hub_is_read_by_its_address(monkeypatch):
    columns = {"text": TEXTS, "messages": [json.dumps(chat) for chat in CHAT] + ["[{" + "x" * 100_000]}
    asked = []

    def dataset_texts(name, column, *, progress):
        asked.append(name)
        return iter(columns[column])

    monkeypatch.setattr("pruning.loading.datasets.dataset_texts", dataset_texts)
    plain, chat = Calibration.of("hub:me/data"), Calibration.of("hub:me/data:messages")
    assert asked == ["me/data", "me/data"]
    assert (plain.kind, plain.content, plain.address) == ("text", "\n\n".join(TEXTS), "hub:me/data")
    assert (chat.kind, chat.sha256) == ("messages", Calibration.of(CHAT).sha256)
    assert chat.to_python().startswith("pruning.Calibration.of('hub:me/data:messages'")


def test_a_text_file_is_read_as_it_is(tmp_path):
    file = tmp_path / "dos.txt"
    file.write_bytes(b"The sea.\r\nThe old man.\rThe end.\n")
    assert read_text(file) == "The sea.\r\nThe old man.\rThe end.\n"


def test_a_recipe_of_an_older_release_still_knows_its_text_with_other_line_ends():
    content = "The sea.\r\nThe old man.\rThe end.\n"
    as_read_then = content.replace("\r\n", "\n").replace("\r", "\n")
    digest = hashlib.sha256(as_read_then.encode()).hexdigest()
    assert Calibration.custom(content, sha256=digest).content == as_read_then
    assert Calibration.custom(content).content == content
    with pytest.raises(RecipeError, match="not the text"):
        Calibration.custom(content + "!", sha256=digest)
