from pruning.criteria.base import Criterion

CRITERION = Criterion(
    name="activation",
    title="How strongly it fires",
    formula="√E[aⱼ²], a = the input of the output projection",
    source="2SSP: a two-stage framework for structured pruning of LLMs (Sandri et al., 2025), stage 1",
    url="https://arxiv.org/abs/2501.17771",
    needs_calibration=True,
    score=lambda mlp, moments, generator: moments.square.sqrt(),
)
