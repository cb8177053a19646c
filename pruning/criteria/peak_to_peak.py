from pruning.criteria.base import Criterion


def _score(mlp, moments, generator):
    return sum(matrix.amax(dim=1).float() + matrix.amin(dim=1).float().abs() for matrix in mlp.input_weights)


CRITERION = Criterion(
    name="ppm",
    title="Peak-to-peak magnitude",
    formula="Σ over gate and up of (max Wⱼ + |min Wⱼ|)",
    source="The course's right way for gated MLPs (Martra, Large Language Model Notebooks Course, "
    "chapter 6), there called maximum absolute weight",
    url="https://github.com/peremartra/Large-Language-Model-Notebooks-Course",
    score=_score,
)
