"""A prebuilt llama.cpp, run on exported files."""

import torch

NEW_TOKENS = 24


def serve(file):
    """Start llama.cpp's server on a file."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = 256
    settings.warmup = False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(settings)


def chat(file, question):
    """Ask llama.cpp's own chat endpoint, which renders the file's chat template, and return its response."""
    messages = [{"role": "user", "content": question}]
    request = {"messages": messages, "max_tokens": 8, "temperature": 0}
    return serve(file).handle_chat_completions(request)


def greedy(file, prompts):
    """Yield the tokens that llama.cpp generates after each list of tokens, and their log-probabilities."""
    server = serve(file)
    for prompt in prompts:
        request = {
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 1,
        }
        steps = server.handle_completions(request)["choices"][0]["logprobs"]["content"]
        yield [step["id"] for step in steps], torch.tensor([step["logprob"] for step in steps])


def assert_agrees(file, model, tokenizer, prompts, tolerance):
    """Assert that llama.cpp generates the tokens of transformers, with the same log-probabilities.

    Each of its tokens is compared with the distribution of transformers after the same tokens before it,
    so that one near tie, within the tolerance, does not make all later tokens differ.
    """
    prompts = [tokenizer(prompt).input_ids for prompt in prompts]
    for prompt, (generated, reported) in zip(prompts, greedy(file, prompts), strict=True):
        assert len(generated) == NEW_TOKENS
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + generated])).logits[0, len(prompt) - 1 : -1].float()
        log_probabilities = logits.log_softmax(-1)
        expected = log_probabilities.gather(1, torch.tensor(generated)[:, None])[:, 0]
        torch.testing.assert_close(reported, expected, atol=tolerance, rtol=0)
        below_best = log_probabilities.max(dim=1).values - expected
        assert float(below_best.max()) <= 2 * tolerance
        assert int((below_best == 0).sum()) >= NEW_TOKENS - 2
