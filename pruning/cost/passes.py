"""The arithmetic of a model's passes over tokens: operations and memory, from its shape alone.

The counts are those of matrix products, which take nearly all of the time: two operations for each weight and
token. A model on a CPU computes in float32, whatever its files hold.
"""

from dataclasses import dataclass
from functools import cached_property

from pruning.architectures.families import CHANNEL, KEY_VALUE, LAYER, NEURON, QUERY, TOKEN
from pruning.architectures.shape import Shape

FLOAT = 4
"""Bytes of a number in memory."""

SAVED_BY_ACTIVATION = {"relu": 1, "gelu": 2, "gelu_new": 5}
"""Numbers that the backward pass needs of each neuron of an MLP without a gate, by the activation function:
`gelu_new` is written as five products, each of which keeps an input."""

SAVED_BY_GATE = 4
"""The same with a gate: gate, activation, up and their product."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that decide what a pass costs. The widths of heads are in entries, not in heads."""

    shape: Shape

    @cached_property
    def layers(self) -> int:
        """The number of layers."""
        return self.shape.count(LAYER)

    @cached_property
    def channels(self) -> int:
        """The hidden size."""
        return self.shape.count(CHANNEL)

    @cached_property
    def neurons(self) -> int:
        """The neurons of a layer."""
        return self.shape.count(NEURON)

    @cached_property
    def vocabulary(self) -> int:
        """The tokens, each with a row of the output head."""
        return self.shape.count(TOKEN)

    @cached_property
    def queries(self) -> int:
        """The inputs of attention's output projection."""
        return self.inputs(QUERY)

    @cached_property
    def heads(self) -> int:
        """The query heads of a layer."""
        return self.shape.count(QUERY)

    @cached_property
    def keys(self) -> int:
        """The entries of all keys of a token, and of all of its values."""
        key_value_heads = self.shape.count(KEY_VALUE) if KEY_VALUE in self.shape.anatomy.units else self.heads
        return self.queries // self.heads * key_value_heads

    @cached_property
    def components(self) -> dict[str, int]:
        """Parameters by component, tied ones counted once."""
        return self.shape.components

    @property
    def parameters(self) -> int:
        """All parameters, tied ones counted once."""
        return sum(self.components.values())

    @property
    def bytes(self) -> int:
        """The size of the model in memory."""
        return FLOAT * self.parameters

    @property
    def loaded(self) -> int:
        """The private memory of the model as it is loaded: none if its files hold float32, which are mapped."""
        dtype = str(getattr(self.shape.anatomy.config, "dtype", None))
        return 0 if dtype.endswith("float32") else self.bytes

    @property
    def untrained(self) -> int:
        """Parameters of the embeddings and the head."""
        return self.components["embeddings"] + self.components["head"]

    @property
    def projections(self) -> int:
        """Parameters of attention and MLP: those that multiply every token."""
        return self.components["attention"] + self.components["mlp"]

    @cached_property
    def largest(self) -> int:
        """The parameters of the largest tensor."""
        return max(self.vocabulary * self.channels, self.neurons * self.channels)

    @property
    def has_eager_attention(self) -> bool:
        """Whether attention holds its weights in memory: with a cap on them, no fused kernel can be used."""
        return getattr(self.shape.anatomy.config, "attn_logit_softcapping", None) is not None

    @property
    def context(self) -> int | None:
        """The most tokens in a window, if the model has a limit."""
        return getattr(self.shape.anatomy.config, "max_position_embeddings", None)

    def inputs(self, kind: str) -> int:
        """Return the number of inputs of a layer's output projection, for neurons or for query heads."""
        projections = self.shape.anatomy.output_projections(kind)
        return self.input_width(projections[0]) if projections else 0

    def input_width(self, module: str) -> int:
        """Return the number of inputs of a projection, by its name in the base."""
        spec = self.shape.anatomy.tensor(f"{module}.weight")
        axis = self.shape.anatomy.input_axis(spec)
        return self.shape.length(spec.labels[axis], spec.shape[axis])

    def limit(self, window: int) -> int:
        """Return a window's length, limited to the model's context."""
        return min(window, self.context or window)

    def forward_flop(self, tokens: float, window: float) -> float:
        """Count a forward pass without the head.

        2 · parameters of the projections for each token, and for attention 2 · width for each pair of tokens in a
        window, both for the weights and for the values: 4 · layers · width · window for each token.

        Args:
            tokens: How many tokens are read.
            window: How many of them attend to one another. Masked pairs are computed as well.
        """
        return tokens * (2 * self.projections + 4 * self.layers * self.queries * window)

    def head_flop(self, tokens: float) -> float:
        """Count the logits of some tokens: 2 · vocabulary · channels for each."""
        return 2 * tokens * self.vocabulary * self.channels

    def forward_memory(self, tokens: int, window: int) -> int:
        """Return what a forward pass over tokens at one time takes, without gradients and logits.

        Of one layer at a time: the residual stream, and the larger of the MLP (activation, up and product) and
        attention (queries, keys and values, before and after the rotation). Eager attention has three matrices
        of weights.
        """
        mlp = 3 * self.neurons + 3 * self.channels
        attention = 3 * self.queries + 3 * self.keys + 3 * self.channels
        weights = 3 * self.heads * window if self.has_eager_attention else 0
        return FLOAT * tokens * (max(mlp, attention + weights))

    def logits_memory(self, tokens: int) -> int:
        """Return what the loss of tokens takes: the logits, and their log-softmax."""
        return 2 * FLOAT * tokens * self.vocabulary

    def saved_memory(self, tokens: int, window: int) -> int:
        """Return what a forward pass keeps for the backward pass, without gradient checkpointing.

        For each token and layer: a norm keeps its input and its output (RMSNorm also the normalized input);
        attention its queries, keys, values and output; the MLP what its activation function is made of.
        """
        return FLOAT * tokens * self.layers * self._saved_of_layer(window)

    def _saved_of_layer(self, window: int) -> int:
        anatomy = self.shape.anatomy
        specs = anatomy.of_layer(0)
        names = [spec.name for spec in specs]
        norms = [spec for spec in specs if spec.component == "norms" and spec.name.endswith(".weight")]
        of_norm = 2 if any(name.endswith("norm.bias") or ".ln_" in name for name in names) else 3
        attention = 2 * (self.queries + self.keys)
        if any(name.endswith("q_norm.weight") for name in names):
            attention += 2 * (self.queries + self.keys)
        if len(anatomy.input_projections(0, "attention")) == 1:  # The values are a part of a fused output.
            attention += self.queries + self.keys
        if self.has_eager_attention:
            attention += 2 * self.heads * window
        return len(norms) * of_norm * self.channels + attention + self._saved_of_neuron * self.neurons

    @property
    def _saved_of_neuron(self) -> int:
        if self.shape.anatomy.family.gated:
            return SAVED_BY_GATE
        config = self.shape.anatomy.config
        name = getattr(config, "activation_function", None) or getattr(config, "hidden_act", "")
        return SAVED_BY_ACTIVATION.get(str(name), max(SAVED_BY_ACTIVATION.values()))


def copied(before: Shape, after: Shape) -> int:
    """Return the bytes of the tensors that a cut copies: those whose shape it changes. Others are shared."""
    count = 0
    for spec, _ in before.weighted():
        size = changed = 1
        for label, length in zip(spec.labels, spec.shape, strict=True):
            size *= before.length(label, length)
            changed *= after.length(label, length)
        if size != changed:
            count += changed * after.times(spec)
    return FLOAT * count
