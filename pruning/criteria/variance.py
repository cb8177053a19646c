from pruning.criteria.base import Criterion

CRITERION = Criterion(
    name="variance",
    title="Variance of its weights",
    formula="Σ over gate and up of Var(Wⱼ)",
    source="Compared with peak-to-peak magnitude in the course (Martra, Large Language Model Notebooks "
    "Course, chapter 6)",
    url="https://github.com/peremartra/Large-Language-Model-Notebooks-Course",
    score=lambda mlp, moments, generator: sum(matrix.float().var(dim=1) for matrix in mlp.input_weights),
)
