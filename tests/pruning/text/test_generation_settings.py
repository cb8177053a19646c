"""What a model's files set for generation is kept for saving, and never obeyed."""

import json
import shutil

import pytest

import pruning
from pruning.evaluation.speed import tokens_per_second
from pruning.text.generation import sample_text
from tests.helpers.models import PROMPT, folder_of
from tests.helpers.saved import cut

SETTINGS = {
    "num_beams": 4000,
    "stop_strings": ["e", " "],
    "bad_words_ids": [[300], [301]],
    "cache_implementation": "quantized",
    "penalty_alpha": 0.6,
    "top_k": 1,
    "max_time": 0.0001,
    "sequence_bias": [[[300], -100.0]],
    "guidance_scale": 9.0,
    "min_length": 400,
    "max_length": 3,
    "max_new_tokens": 2,
    "min_new_tokens": 300,
    "forced_bos_token_id": 300,
    "forced_eos_token_id": 300,
    "suppress_tokens": list(range(2, 300)),
    "begin_suppress_tokens": list(range(2, 300)),
    "exponential_decay_length_penalty": [1, 2.0],
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "repetition_penalty": 50.0,
    "encoder_repetition_penalty": 50.0,
    "length_penalty": -9.0,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "do_sample": True,
    "temperature": 90.0,
    "top_p": 0.01,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "diversity_penalty": 2.0,
    "num_beam_groups": 2,
    "constraints": ["x"],
    "watermarking_config": {"greenlist_ratio": 0.1, "bias": 90.0},
    "prompt_lookup_num_tokens": 3,
    "dola_layers": "high",
    "use_cache": False,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "token_healing": True,
    "low_memory": True,
    "is_assistant": True,
    "prefill_chunk_size": 1,
    "custom_entry": "surprise",
}


@pytest.fixture(scope="module")
def expected():
    return pruning.generate(pruning.load(str(folder_of("llama"))), PROMPT, pruning.Sampling(12))


def model_with(folder, file, settings):
    target = shutil.copytree(folder_of("llama"), folder / "model")
    values = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(values | settings))
    return pruning.load(str(target))


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_a_file_changes_a_text(name, expected, tmp_path):
    base = model_with(tmp_path, "generation_config.json", {name: SETTINGS[name]})
    before = base.model.generation_config.to_dict()
    assert pruning.generate(base, PROMPT, pruning.Sampling(12)) == expected
    assert base.model.generation_config.to_dict() == before


def test_all_settings_together_change_no_measure_and_stay_in_the_saved_file(expected, tmp_path):
    base = model_with(tmp_path, "generation_config.json", SETTINGS)
    plain = pruning.load(str(folder_of("llama")))
    assert pruning.generate(base, PROMPT, pruning.Sampling(12)) == expected
    assert sample_text(base, 300) == sample_text(plain, 300)
    assert len(tokens_per_second((base.model, plain.model), base.tokenizer, new_tokens=3, rounds=1)) == 2
    saved = json.loads((cut(base).save(tmp_path / "cut") / "generation_config.json").read_text())
    assert "auto_map" not in saved
    assert {name: saved.get(name) for name in ("num_beams", "stop_strings", "max_time", "custom_entry")} == {
        name: SETTINGS[name] for name in ("num_beams", "stop_strings", "max_time", "custom_entry")
    }


@pytest.mark.parametrize("name", ["num_beams", "min_length", "repetition_penalty", "max_time"])
def test_settings_of_an_old_config_are_not_obeyed_either(name, expected, tmp_path):
    base = model_with(tmp_path, "config.json", {name: SETTINGS[name]})
    assert pruning.generate(base, PROMPT, pruning.Sampling(12)) == expected
    assert pruning.generate(pruning.load(str(cut(base).save(tmp_path / "cut"))), PROMPT)


@pytest.mark.parametrize("value", ["</s>", [1, "x", -4, 10**9], {"a": 1}, True])
def test_token_ids_that_are_none_are_left_out(value, tmp_path):
    base = model_with(tmp_path, "generation_config.json", {"eos_token_id": 1})
    base.model.generation_config.eos_token_id = value
    assert isinstance(pruning.generate(base, PROMPT, pruning.Sampling(4)), str)
