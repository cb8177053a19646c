"""Completions are scored as if each were read alone, although what they share is read once."""

import pytest
import torch

import pruning
from pruning.errors import Cancelled
from pruning.text import completions
from pruning.text.completions import Question, score_completions
from tests.helpers.models import FAMILIES, WITH_BOS, loaded

PASSAGE = "Mara keeps the lighthouse on Gull Island. Every evening at six she climbs the stairs to the lamp."
QUESTIONS = [
    Question("The dog", (" barks", " barked at the old man", " ba")),
    Question("", ("Birds sing in the morning.", "Birds sing.", "No")),
    Question(f"{PASSAGE}\nThe keeper is", (" Mara", " Tom", " a very old pilot"), "light"),
    Question("One, two,", (" three", " nine")),
    Question(f"{PASSAGE}\nShe climbs at", (" six", " seven in the morning"), "light"),
    Question(f"{PASSAGE}\nThe island is called", (" Gull Island", " Seal Island"), "light"),
    Question("Señor 日本", (" naïve ☕", " 🌲🌲")),
    Question("The cat", (" sleeps", " sleeps well")),
]


def plain(base, context, completion):
    """The log-likelihood from one plain pass over one choice."""
    before = base.tokenizer(context).input_ids
    ids = base.tokenizer(context + completion).input_ids
    if not before:
        before, ids = [0], [base.tokenizer.bos_token_id, *ids]
    assert ids[: len(before)] == before or not context
    chances = base.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return float(chances.gather(1, torch.tensor(ids[1:])[:, None])[len(before) - 1 :].sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", [completions.MOST_POSITIONS, 1])
def test_scores_are_those_of_reading_every_choice_alone(family, positions, monkeypatch):
    monkeypatch.setattr(completions, "MOST_POSITIONS", positions)
    base = loaded(family)
    scores = score_completions(base.model, base.tokenizer, QUESTIONS)
    for question, values in zip(QUESTIONS, scores.values, strict=True):
        for completion, value in zip(question.completions, values, strict=True):
            assert value == pytest.approx(plain(base, question.context, completion), abs=2e-4)


def test_logits_in_pieces_give_the_same_scores(monkeypatch):
    base = loaded("llama")
    whole = score_completions(base.model, base.tokenizer, QUESTIONS)
    monkeypatch.setattr(completions, "MOST_LOGITS", 1000)
    pieces = score_completions(base.model, base.tokenizer, QUESTIONS)
    for one, other in zip(whole.values, pieces.values, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_passage_is_read_once(family):
    base = loaded(family)
    sizes = [len(base.tokenizer(PASSAGE).input_ids)]
    on_passage = [question for question in QUESTIONS if question.passage]
    together = score_completions(base.model, base.tokenizer, on_passage).tokens_read
    alone = [score_completions(base.model, base.tokenizer, [question]).tokens_read for question in on_passage]
    # The newline after it is shared as well, and is one token.
    saved = (len(on_passage) - 1) * (sizes[0] + 1)
    assert sum(alone) - together == pytest.approx(saved, abs=len(on_passage))


def test_the_last_token_of_a_completion_is_not_read():
    base = loaded("gpt2")
    context = len(base.tokenizer("The").input_ids)
    for completion in (" a", " b"):
        assert len(base.tokenizer(f"The{completion}").input_ids) == context + 1
    assert (
        score_completions(base.model, base.tokenizer, [Question("The", (" a", " b"))]).tokens_read == context
    )


def test_the_tokens_read_are_counted():
    base = loaded("llama")
    seen = []
    hook = base.model.base_model.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    try:
        scores = score_completions(base.model, base.tokenizer, QUESTIONS)
    finally:
        hook.remove()
    assert scores.tokens_read == sum(seen) > 0


def test_questions_on_one_passage_that_begin_differently_are_scored_too():
    base = loaded("gpt2")
    questions = [Question("A fox", (" ran", " sat"), "one"), Question("The end", (" came", " is"), "one")]
    values = score_completions(base.model, base.tokenizer, questions).values
    for question, scores in zip(questions, values, strict=True):
        expected = [plain(base, question.context, completion) for completion in question.completions]
        assert scores == pytest.approx(expected, abs=2e-4)


def test_the_same_question_twice_on_one_passage_is_scored_twice():
    base = loaded("gpt2")
    question = Question("A fox", (" ran", " sat down"), "one")
    one, two = score_completions(base.model, base.tokenizer, [question, question]).values
    assert one == pytest.approx(two, abs=1e-5)


def test_what_the_model_cannot_read_is_left_out():
    base = loaded("gpt2", n_positions=64)
    questions = [QUESTIONS[0], Question("long " * 100, (" a", " b")), QUESTIONS[3]]
    values = score_completions(base.model, base.tokenizer, questions).values
    assert [value is None for value in values] == [False, True, False]


def test_what_the_tokenizer_cannot_write_is_left_out():
    """A tokenizer without a token for every byte loses what it has no token for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {text: number for number, text in enumerate(["<unk>", "<s>", "Ġ", *"abcdefgh"])}
    for unknown in ("<unk>", None):
        words = Tokenizer(models.BPE(letters, [], unk_token=unknown))
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        few = PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown, bos_token="<s>")
        questions = [Question("abc", (" d", " e")), Question("abc", (" x", " d")), Question("", ("b", "a"))]
        values = score_completions(loaded("gpt2").model, few, questions).values
        assert [value is None for value in values] == [False, True, False]


def test_without_a_token_to_begin_with_a_question_needs_a_context():
    from transformers import PreTrainedTokenizerFast

    base = loaded("gpt2")
    bare = PreTrainedTokenizerFast(tokenizer_object=base.tokenizer.backend_tokenizer)
    values = score_completions(
        base.model, bare, [Question("", ("a", "b")), Question("a", (" b", " c"))]
    ).values
    assert values[0] is None
    assert values[1] is not None


def test_tokens_without_an_embedding_leave_a_question_out():
    base = loaded("qwen2", vocab_size=320)
    questions = [Question("Hello", (" you", " <|endoftext|>")), Question("Hello", (" you", " me"))]
    values = score_completions(base.model, base.tokenizer, questions).values
    assert [value is None for value in values] == [True, False]


def test_scoring_can_be_cancelled_before_every_batch():
    base, reports = loaded("llama"), []
    score_completions(base.model, base.tokenizer, QUESTIONS, name="riddles", progress=reports.append)
    answering = [report for report in reports if report.text == "Answering riddles, choices"]
    choices = sum(len(question.completions) for question in QUESTIONS)
    assert {report.total for report in answering} == {choices}
    assert [report.done for report in answering] == sorted(report.done for report in answering)
    for last in range(1, len(reports) + 1):
        seen = []

        def stop(report, seen=seen, last=last):
            seen.append(report)
            if len(seen) == last:
                raise Cancelled("Stopped.")

        with pytest.raises(Cancelled):
            score_completions(base.model, base.tokenizer, QUESTIONS, progress=stop)
        assert len(seen) == last


def test_nothing_to_score_reads_nothing():
    base = loaded("gpt2")
    scores = score_completions(base.model, base.tokenizer, [])
    assert (scores.values, scores.tokens_read) == ([], 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_with_fewer_tokens_is_scored_on_the_same_bytes(family):
    assert (family in WITH_BOS) == (family == "llama")
    recipe = pruning.Recipe(base="tiny", steps=[pruning.Vocabulary(size=270)])
    pruned = pruning.prune(recipe, loaded(family))
    values = score_completions(pruned.model, pruned.tokenizer, QUESTIONS[:4]).values
    for question, scores in zip(QUESTIONS, values, strict=False):
        expected = [plain(pruned, question.context, completion) for completion in question.completions]
        assert scores == pytest.approx(expected, abs=5e-4)
