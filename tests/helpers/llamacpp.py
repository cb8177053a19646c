"""A prebuilt llama.cpp, run on what was exported."""

import torch

NEW_TOKENS = 24


def greedy(file, prompts):
    """The tokens that llama.cpp finds likeliest after each list of tokens, and their log-probabilities."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = 256
    settings.warmup = False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    for prompt in prompts:
        asked = {
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 1,
        }
        steps = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        yield [step["id"] for step in steps], torch.tensor([step["logprob"] for step in steps])


def agree(file, model, tokenizer, prompts, tolerance):
    """llama.cpp takes the tokens that transformers does, with the same log-probabilities.

    Each of its tokens is held against transformers' distribution after the same tokens before it, so that
    one near tie, within the tolerance, does not set the two on different ways.
    """
    prompts = [tokenizer(prompt).input_ids for prompt in prompts]
    for prompt, (written, told) in zip(prompts, greedy(file, prompts), strict=True):
        assert len(written) == NEW_TOKENS
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1].float()
        chances = logits.log_softmax(-1)
        taken = chances.gather(1, torch.tensor(written)[:, None])[:, 0]
        torch.testing.assert_close(told, taken, atol=tolerance, rtol=0)
        behind = chances.max(dim=1).values - taken
        assert float(behind.max()) <= 2 * tolerance
        assert int((behind == 0).sum()) >= NEW_TOKENS - 2
