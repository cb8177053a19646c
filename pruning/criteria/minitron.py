from pruning.criteria.base import Criterion

CRITERION = Criterion(
    name="minitron",
    title="Minitron's importance",
    formula="‖ mean over the sequence of |aⱼ| ‖₂ over the batch",
    source="Compact language models via pruning and knowledge distillation (Muralidharan et al., "
    "2024), §2.2, with its best aggregation (batch: L2, sequence: mean)",
    url="https://arxiv.org/abs/2407.14679",
    needs_calibration=True,
    score=lambda mlp, moments, generator: moments.sequence,
)
