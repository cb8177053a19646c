"""The logits of hidden states are the model's own, whatever it does besides multiplying by its embeddings."""

import pytest
import torch

from pruning.architectures.lm_head import backbone, logits_of
from pruning.architectures.probe import default_config, probe_config
from pruning.architectures.tiny_model import random_model

OPTIONS = {
    "llama": {},
    "gpt2": {},
    "opt": {},  # Its head calls the decoder inside its backbone.
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "minicpm3": {"dim_model_base": 16},
    "falcon_h1": {"lm_head_multiplier": 0.25},
    "gemma2": {"final_logit_softcapping": 3.0},
    "recurrent_gemma": {"logits_soft_cap": 3.0},
    "bert": {"is_decoder": True},  # A further layer and a norm.
    "llama4_text": {},  # Names a backbone that it does not have.
}


@pytest.mark.parametrize(("model_type", "options"), OPTIONS.items())
def test_logits_of_the_last_hidden_states_are_the_logits_of_the_model(model_type, options):
    model = random_model(probe_config(default_config(model_type), **options))
    modules = dict(model._modules)
    ids = torch.arange(10, 18)[None]
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[0]
        hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(logits_of(model, hidden), expected, atol=1e-4, rtol=1e-4)
    assert model._modules == modules
