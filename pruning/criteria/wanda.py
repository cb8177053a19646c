from pruning.criteria.base import Criterion

CRITERION = Criterion(
    name="wanda",
    title="How strongly it fires, times what it writes",
    formula="√E[aⱼ²] · ‖W_down[:, j]‖₂",
    source="After Wanda: A simple and effective pruning approach for LLMs (Sun et al., 2023), eq. 1, "
    "for whole neurons",
    url="https://arxiv.org/abs/2306.11695",
    needs_calibration=True,
    score=lambda mlp, moments, generator: moments.square.sqrt() * mlp.output_weight.float().norm(dim=0),
)
