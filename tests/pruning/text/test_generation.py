"""Text, streamed: the same seed gives the same text, and nobody else notices."""

import threading
import time

import pytest
import torch

from pruning import RecipeError, Sampling, complete, stream
from pruning.errors import Cancelled
from pruning.progress import Progress
from pruning.text.generation import GumbelNoise, compare, encode_prompt, report_each_token, sample_text
from tests.helpers.models import PROMPT, WITH_BOS, loaded, trained

HOT = {"max_new_tokens": 24, "temperature": 1.0}


def plain(base, prompt=PROMPT, new_tokens=20):
    """What transformers itself writes."""
    ids = base.tokenizer(prompt, return_tensors="pt").input_ids
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    written = base.model.generate(ids, max_new_tokens=new_tokens, **settings)
    return base.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def text(base, prompt=PROMPT, **settings):
    return complete(base.model, base.tokenizer, prompt, Sampling(**settings))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gemma3_text"])
def test_greedy_is_what_transformers_writes(family):
    base = loaded(family)
    assert text(base, max_new_tokens=20) == plain(base)
    assert text(base, max_new_tokens=20, temperature=1e-300) == plain(base)


def test_pieces_make_the_text():
    base = trained()
    pieces = list(stream(base.model, base.tokenizer, PROMPT, Sampling(20)))
    assert len(pieces) > 1
    assert "".join(pieces) == plain(base)


def test_seed_decides():
    base = trained()
    assert text(base, seed=1, **HOT) == text(base, seed=1, **HOT)
    assert len({text(base, seed=seed, **HOT) for seed in (1, 2, 3, 2**63 - 1)}) == 4
    assert text(base, seed=1, max_new_tokens=20) == text(base, seed=2, max_new_tokens=20)


def test_no_global_random_state_is_touched():
    base, before = trained(), torch.get_rng_state()
    text(base, **HOT)
    sample_text(base, 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_noise_draws_from_the_softmax(temperature):
    logits = torch.tensor([1.0, 0.0, -0.5, 0.7, -2.0])
    draws = 4000
    chances = torch.softmax(logits / temperature, dim=0)
    noise = GumbelNoise(temperature, seed=5)
    for positions in (1, 1000):
        drawn = torch.cat(
            [
                noise(torch.zeros(1, 1 + position), logits.repeat(draws // positions, 1)).argmax(dim=1)
                for position in range(positions)
            ]
        )
        counts = torch.bincount(drawn, minlength=5)
        # 4 degrees of freedom: above 23.5 once in ten thousand.
        assert ((counts - draws * chances).square() / (draws * chances)).sum() < 23.5


def test_noise_depends_on_seed_and_position_alone():
    scores = torch.zeros(1, 50)

    def drawn(seed, position):
        return GumbelNoise(1.0, seed)(torch.zeros(1, position), scores)

    assert torch.equal(drawn(3, 7), drawn(3, 7))
    assert not torch.equal(drawn(3, 7), drawn(3, 8))
    assert not torch.equal(drawn(3, 7), drawn(4, 7))
    assert torch.isfinite(drawn(2**63 - 1, 1)).all()


def test_streams_in_threads_do_not_disturb_one_another():
    base, written = trained(), {}

    def write(seed):
        written[seed] = text(base, seed=seed, **HOT)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == {seed: text(base, seed=seed, **HOT) for seed in range(4)}


def test_stopping_keeps_what_was_written():
    base, asked = trained(), []

    def stopped():
        asked.append(1)
        return len(asked) == 5

    short = "".join(stream(base.model, base.tokenizer, PROMPT, Sampling(200), stopped))
    assert len(asked) == 5
    assert short == plain(base, new_tokens=5)


def test_closing_early_ends_the_thread():
    base = trained()
    before = threading.active_count()
    pieces = stream(base.model, base.tokenizer, PROMPT, Sampling(900))
    next(pieces)
    start = time.perf_counter()
    pieces.close()
    assert threading.active_count() == before
    assert time.perf_counter() - start < 2


def test_failure_of_the_model_reaches_the_reader(monkeypatch):
    base = loaded("gpt2")
    monkeypatch.setattr(base.model, "generate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        text(base)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", None, 5])
def test_empty_prompt_is_refused(prompt):
    with pytest.raises(RecipeError, match="Write a few words"):
        text(loaded("gpt2"), prompt)


def test_enormous_prompt_is_refused_before_it_is_tokenised():
    with pytest.raises(RecipeError, match=r"100,000 characters; at most 20,000.*Shorten"):
        encode_prompt(None, "x" * 100_000)


def test_what_cannot_be_continued_is_refused_before_the_first_piece():
    base = loaded("gpt2", n_positions=64)
    for prompt in ("", "x" * 100_000, "x y z " * 40):
        with pytest.raises(RecipeError):
            stream(base.model, base.tokenizer, prompt)


def test_prompt_longer_than_the_model_reads_is_refused():
    base = loaded("gpt2", n_positions=64)
    tokens = encode_prompt(base.tokenizer, PROMPT).shape[1]
    assert text(base, max_new_tokens=64 - tokens)
    with pytest.raises(RecipeError, match=r"more than the 64 that this model can read\. Shorten it"):
        text(base, max_new_tokens=65 - tokens)


def test_token_that_the_model_does_not_know_is_named():
    with pytest.raises(RecipeError, match=r"'<\|endoftext\|>'.*Remove it"):
        text(loaded("qwen2", vocab_size=320), "Hello <|endoftext|>")


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_new_tokens": value} for value in (0, -1, 1025, 10**9, 2.5, "5", True, None)),
        *({"temperature": value} for value in (-0.1, 2.1, float("nan"), float("inf"), "hot", True, None)),
        *({"seed": value} for value in (-1, 2**63, 0.5, "1", False, None)),
    ],
)
def test_settings_out_of_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(RecipeError, match=rf"^{name} is .*(needed|must be)"):
        Sampling(**settings)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 24}, HOT | {"seed": 3}])
def test_compared_models_write_what_they_write_alone(settings):
    base, other = loaded("llama"), loaded("llama", seed=1)
    *_, last = compare((base, other), PROMPT, Sampling(**settings))
    assert last == (text(base, **settings), text(other, **settings))
    *_, last = compare((base, base), PROMPT, Sampling(**settings))
    assert last[0] == last[1]


def test_comparing_stops_and_fails_as_a_whole():
    base, before = trained(), threading.active_count()
    both = compare((base, base), PROMPT, Sampling(900))
    next(both)
    both.close()
    assert threading.active_count() == before
    assert list(compare((base,), PROMPT, Sampling(900), lambda: True))
    with pytest.raises(RecipeError, match="prompt is empty"):
        list(compare((base, base), ""))
    assert threading.active_count() == before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_model_writes_its_own_text(family):
    base, lines = loaded(family), []
    written = sample_text(base, 300, seed=1, progress=lines.append)
    assert len(base.tokenizer(written).input_ids) >= 300
    assert written == sample_text(base, 300, seed=1) != sample_text(base, 300, seed=2)
    assert lines[0].total == 300
    assert family in WITH_BOS or base.tokenizer.bos_token not in written


def test_own_text_and_samples_can_be_stopped_after_every_token():
    base = loaded("llama")
    heard = []

    def stop(progress):
        heard.append(progress)
        if len(heard) > 3:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        sample_text(base, 256, progress=stop)
    assert len(heard) == 4
    heard.clear()
    with pytest.raises(Cancelled):
        complete(base.model, base.tokenizer, "Once", stopped=report_each_token(stop, Progress("Writing")))
    assert len(heard) == 4
