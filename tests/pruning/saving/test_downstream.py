"""What others do with a pruned model, each with their own tools: it is an ordinary one to all of them."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import pruning
from pruning.architectures.families import COMPARED_VERSION
from pruning.sharing.gguf import export
from tests.helpers.llamacpp import assert_agrees, chat
from tests.helpers.older_transformers import OLDER, read_by_older

pytestmark = pytest.mark.real

PROMPTS = ["Paris is the capital of", "The best way to learn is", "def add(a, b):"]


STEPS = {
    # 1228 of the 1536 neurons: not a multiple of 32.
    "neurons": (pruning.Neurons(fraction=0.2, multiple_of=1, repair=False),),
    "every step": (
        pruning.Layers(layers=(9, 20)),
        pruning.Heads(groups=1),
        pruning.Heads(queries=1),
        pruning.Neurons(fraction=0.2),
        pruning.Channels(fraction=0.1),
        pruning.Vocabulary(fraction=0.2),
        pruning.Weights(fraction=0.2),
    ),
}


@pytest.fixture(scope="module", params=STEPS)
def pruned(request, smollm2):
    text = pruning.Calibration(tokens=1024)
    recipe = pruning.Recipe(base="smollm2-135m", calibration=text, steps=STEPS[request.param])
    return pruning.prune(recipe, smollm2)


@pytest.fixture(scope="module")
def folder(pruned, tmp_path_factory):
    return pruned.save(tmp_path_factory.mktemp("downstream") / "smollm2-pruned")


@pytest.fixture
def installed(need):
    def check(module, package):
        need(importlib.util.find_spec(module), f"{package} is not installed")

    return check


def test_transformers_pipeline(pruned, folder):
    write = pipeline("text-generation", model=str(folder), device="cpu", dtype="float32")
    settings = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    for prompt in PROMPTS:
        expected = pruning.generate(pruned, prompt, pruning.Sampling(12), chat=False)
        assert write(prompt, **settings)[0]["generated_text"] == expected


def test_an_older_transformers_computes_the_same(pruned, folder, need):
    need(OLDER.is_dir(), "transformers 4.57 is not installed (make .venv/installed-dev)")
    ((version, tokens, last),) = read_by_older([folder], PROMPTS[0])
    assert version == COMPARED_VERSION
    assert tokens == pruned.tokenizer(PROMPTS[0]).input_ids
    with torch.inference_mode():
        expected = pruned.model(torch.arange(2, 50)[None]).logits[0, -1]
    torch.testing.assert_close(torch.tensor(last), expected, atol=1e-3, rtol=0)


def test_peft_learns_in_one_step(folder, installed):
    installed("peft", "peft")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    targets = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
    ids = AutoTokenizer.from_pretrained(folder)(
        "The quick brown fox jumps over the lazy dog.", return_tensors="pt"
    ).input_ids
    learning = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert all("lora_" in name for name in learning)
    optimizer = torch.optim.AdamW(learning.values(), lr=1e-2)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    with torch.inference_mode():
        assert model(input_ids=ids, labels=ids).loss < loss
    with model.disable_adapter():
        frozen = {name.replace(".base_layer", ""): tensor for name, tensor in base.named_parameters()}
    assert all(torch.equal(frozen[name], tensor) for name, tensor in before.items())


def test_lm_eval_measures_it(pruned, folder, installed):
    installed("lm_eval", "lm-eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pairs = [("The capital of France is", " Paris"), ("The capital of France is", " bananas and cream")]
    harness = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    answers = harness.loglikelihood(asked, disable_tqdm=True)
    for (context, continuation), (told, _) in zip(pairs, answers, strict=True):
        before = len(pruned.tokenizer(context).input_ids)
        ids = torch.tensor([pruned.tokenizer(context + continuation).input_ids])
        with torch.inference_mode():
            chances = pruned.model(ids).logits[0, :-1].log_softmax(-1)
        expected = chances.gather(1, ids[0, 1:, None])[before - 1 :].sum()
        assert told == pytest.approx(float(expected), abs=1e-3)
    assert answers[0][0] > answers[1][0]


def test_llama_cpp_writes_the_same_and_chats_in_the_same_format(pruned, folder, installed, tmp_path):
    installed("xllamacpp", "llama.cpp (xllamacpp)")
    file = export(folder, tmp_path / "smollm2-pruned.gguf", "f16")
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # In 16 bits, as the file.
    assert_agrees(file, saved, pruned.tokenizer, PROMPTS, tolerance=0.05)
    question = "What is the capital of France?"
    answer = chat(file, question)
    messages = [{"role": "user", "content": question}]
    written = pruned.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = pruned.tokenizer(written, add_special_tokens=False).input_ids
    assert answer["usage"]["prompt_tokens"] == len(ids)
    expected = pruned.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    text = pruned.tokenizer.decode(expected, skip_special_tokens=True)
    assert text.strip()
    assert answer["choices"][0]["message"]["content"].startswith(text.strip()[:12])
