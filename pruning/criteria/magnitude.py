from pruning.criteria.base import Criterion

# Sums of absolute values overflow float16: they are taken in float32.

L1 = Criterion(
    name="l1",
    title="Size of its weights, L1",
    formula="Σ over the matrices that read of ‖Wⱼ‖₁",
    source="Pruning filters for efficient convnets (Li et al., 2016), §3.1; the course's first cut",
    url="https://arxiv.org/abs/1608.08710",
    score=lambda mlp, moments, generator: sum(
        matrix.float().abs().sum(dim=1) for matrix in mlp.input_weights
    ),
    warning="Fair on GPT-2; on a gated MLP it ruins the model.",
)

L2 = Criterion(
    name="l2",
    title="Size of its weights, L2",
    formula="Σ over the matrices that read of ‖Wⱼ‖₂",
    source="Pruning filters for efficient convnets (Li et al., 2016), §4.5, with the L2 norm",
    url="https://arxiv.org/abs/1608.08710",
    score=lambda mlp, moments, generator: sum(matrix.float().norm(dim=1) for matrix in mlp.input_weights),
    warning="On a gated MLP it loses far more than the criteria that read text.",
)
