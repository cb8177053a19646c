"""Generated text is what transformers generates, fixed by its seed, and touches no global state."""

import threading
import time

import pytest
import torch

from pruning import RecipeError, Sampling, generate, stream
from pruning.errors import Cancelled
from pruning.progress import Progress
from pruning.text.decoding import GumbelNoise
from pruning.text.generation import encode_prompt, report_each_token, sample_text, stream_together
from tests.helpers.models import PROMPT, loaded, trained

HOT = {"max_new_tokens": 24, "temperature": 1.0}


def plain(base, prompt=PROMPT, new_tokens=20):
    """Return what transformers itself generates."""
    ids = base.tokenizer(prompt, return_tensors="pt").input_ids
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    generated = base.model.generate(ids, max_new_tokens=new_tokens, **settings)
    return base.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)


def text(base, prompt=PROMPT, **settings):
    return generate(base, prompt, Sampling(**settings))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gemma3_text"])
def test_greedy_text_is_what_transformers_generates(family):
    base = loaded(family)
    assert text(base, max_new_tokens=20) == plain(base)
    assert text(base, max_new_tokens=20, temperature=1e-300) == plain(base)


def test_pieces_join_to_the_text():
    base = trained()
    pieces = list(stream(base, PROMPT, Sampling(20)))
    assert len(pieces) > 1
    assert "".join(pieces) == plain(base)


def test_the_seed_fixes_a_sampled_text_and_not_a_greedy_one():
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
def test_noise_samples_from_the_softmax(temperature):
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


def test_texts_are_the_same_alone_and_in_parallel_threads():
    base, texts = trained(), {}
    settings = {seed: HOT | {"seed": seed} for seed in range(4)} | {"greedy": {"max_new_tokens": 24}}

    def work(name):
        texts[name] = text(base, **settings[name])

    threads = [threading.Thread(target=work, args=(name,)) for name in settings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {name: text(base, **each) for name, each in settings.items()}


def test_stopping_keeps_the_text_so_far():
    base, calls = trained(), []

    def stopped():
        calls.append(1)
        return len(calls) == 5

    short = generate(base, PROMPT, Sampling(200), stopped=stopped)
    assert len(calls) == 5
    assert short == plain(base, new_tokens=5)


def test_closing_early_ends_the_thread():
    base = trained()
    before = threading.active_count()
    pieces = stream(base, PROMPT, Sampling(900))
    next(pieces)
    start = time.perf_counter()
    pieces.close()
    assert threading.active_count() == before
    assert time.perf_counter() - start < 2


def test_an_error_of_the_model_reaches_the_caller(monkeypatch):
    base = loaded("gpt2")
    monkeypatch.setattr(base.model, "generate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        text(base)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", None, 5])
def test_empty_prompt_is_refused(prompt):
    with pytest.raises(RecipeError, match="Write a few words"):
        text(loaded("gpt2"), prompt)


def test_too_long_a_prompt_is_refused_before_it_is_tokenized():
    with pytest.raises(RecipeError, match=r"100,000 characters; at most 20,000 are allowed\. Shorten it"):
        encode_prompt(None, "x" * 100_000)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "is empty"), ("x" * 100_000, "100,000 characters"), ("x y z " * 40, "model's context of 64")],
)
def test_stream_refuses_a_prompt_before_the_first_piece(prompt, message):
    with pytest.raises(RecipeError, match=message):
        stream(loaded("gpt2", n_positions=64), prompt)


def test_prompt_and_new_tokens_must_fit_the_context():
    base = loaded("gpt2", n_positions=64)
    tokens = encode_prompt(base.tokenizer, PROMPT).shape[1]
    assert text(base, max_new_tokens=64 - tokens) == plain(base, new_tokens=64 - tokens)
    with pytest.raises(RecipeError, match=r"more than the model's context of 64\. Shorten it"):
        text(base, max_new_tokens=65 - tokens)


def test_a_token_without_an_embedding_is_named():
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
    with pytest.raises(RecipeError, match=rf"^{name} is .*; it must be "):
        Sampling(**settings)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 24}, HOT | {"seed": 3}])
def test_a_pair_generates_what_each_generates_alone(settings):
    base, other = loaded("llama"), loaded("llama", seed=1)
    for second in (other, base):
        pairs = list(stream_together((base, second), PROMPT, Sampling(**settings)))
        assert pairs[-1] == (text(base, **settings), text(second, **settings))
        lengths = [len(first) + len(last) for first, last in pairs]
        assert lengths == sorted(set(lengths)), "each pair is longer than the one before"
        assert all(
            whole.startswith(part) for pair in pairs for whole, part in zip(pairs[-1], pair, strict=True)
        )


def test_a_pair_stops_and_fails_as_a_whole(monkeypatch):
    base, before = trained(), threading.active_count()
    pairs = stream_together((base, base), PROMPT, Sampling(900))
    next(pairs)
    pairs.close()
    assert threading.active_count() == before
    *_, last = stream_together((base, base), PROMPT, Sampling(900), stopped=lambda: True)
    assert last == (plain(base, new_tokens=1),) * 2
    with pytest.raises(RecipeError, match="prompt is empty"):
        list(stream_together((base, base), ""))
    broken = loaded("llama")
    monkeypatch.setattr(broken.model, "generate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream_together((base, broken), PROMPT, Sampling(900)))
    assert threading.active_count() == before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_model_generates_its_own_calibration_text(family):
    base, lines = loaded(family), []
    sample = sample_text(base, 300, seed=1, progress=lines.append)
    assert len(base.tokenizer(sample).input_ids) >= 300
    assert sample == sample_text(base, 300, seed=1) != sample_text(base, 300, seed=2)
    assert {line.total for line in lines} == {300}
    assert [line.done for line in lines] == sorted(line.done for line in lines)
    assert base.tokenizer.bos_token not in sample
    assert base.tokenizer.eos_token not in sample


def test_generation_can_be_cancelled_after_every_token():
    base, reports = loaded("llama"), []

    def stop(progress):
        reports.append(progress)
        if len(reports) > 3:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        sample_text(base, 256, progress=stop)
    assert len(reports) == 4
    reports.clear()
    with pytest.raises(Cancelled):
        generate(base, "Once", stopped=report_each_token(stop, Progress("Generating")))
    assert reports == [Progress("Generating")] * 4
