"""Repair across a gap if a norm follows the projection before it, as in Gemma and OLMo 2.

The norm sets the length of what it puts out, so that the projection alone cannot write more. Both are refitted: the
projection to the direction of what is missing, the norm's weight to its size in each channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pruning.architectures.anatomy import Anatomy
from pruning.architectures.lm_head import backbone
from pruning.architectures.matrices import as_channels_first
from pruning.architectures.placement import parameter
from pruning.calibration.hooks import hooks, output_states
from pruning.lazy import torch
from pruning.repair.gap import GapRepair, LayerGap, energy_of, solve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED_TOKENS = 2048
"""The most tokens that the norm's weight is fitted on."""

PROBE_TOKENS = 8


@dataclass(frozen=True)
class PostNorm:
    """A root mean square norm between a projection and the residual stream: g ∘ u / √(mean(u²) + ε).

    Attributes:
        module: Its full name.
        offset: What it adds to its weight.
        epsilon: ε.
        gain: g, its weight with the offset, `[channels]`, float32.
    """

    module: str
    offset: float
    epsilon: float
    gain: torch.Tensor

    def direction(self, states: torch.Tensor) -> torch.Tensor:
        """Return states `[tokens, channels]` of a root mean square of 1."""
        return states * torch.rsqrt(states.square().mean(dim=1, keepdim=True) + self.epsilon)


def post_norm_of(model: PreTrainedModel, anatomy: Anatomy, layer: int) -> PostNorm | None:
    """Return the norm that a layer's MLP writes through, or None if it is not a plain one.

    That it is one is found by running it: its input is the projection's output, it does what `PostNorm` says, and
    what is added to its output is added to the layer's.
    """
    with torch.no_grad():
        projection, place = anatomy.output_projection(layer), anatomy.layer_module(layer)
        norms = [f"{place}.{name}" for name in anatomy.family.post_norms]
        norms = [norm for norm in norms if f"{norm}.weight" in anatomy.names]
        if f"{projection}.bias" in anatomy.names or not norms:
            return None
        seen: dict[str, torch.Tensor] = {}

        def note(name: str) -> Any:
            def keep(args: tuple, _kwargs: Mapping[str, object], output: object) -> None:
                seen[f"{name} in"], seen[name] = (
                    args[0].flatten(0, -2).float(),
                    output_states(output)[0].float(),
                )

            return keep

        ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % model.config.vocab_size
        with hooks(model, {}, {name: note(name) for name in (projection, *norms)}):
            backbone(model)(input_ids=ids, use_cache=False)
        for name in norms:
            if f"{name} in" not in seen or not torch.equal(
                seen[f"{name} in"], seen[projection].flatten(0, -2)
            ):
                continue
            norm = model.get_submodule(name)
            epsilon = next(
                (getattr(norm, key) for key in ("eps", "variance_epsilon") if hasattr(norm, key)), 1e-6
            )
            found = PostNorm(
                name,
                anatomy.family.norm_offset,
                float(epsilon),
                parameter(model, f"{name}.weight").float() + anatomy.family.norm_offset,
            )
            expected = found.gain * found.direction(seen[f"{name} in"])
            if torch.allclose(expected, seen[name].flatten(0, -2), atol=1e-2, rtol=1e-2) and _is_added(
                model, name, place, ids
            ):
                return found
        return None


def _is_added(model: PreTrainedModel, norm: str, layer: str, ids: torch.Tensor) -> bool:
    """Return whether what is added to a norm's output is added to the output of its layer."""
    outputs: list[torch.Tensor] = []

    def note(_args: tuple, _kwargs: Mapping[str, object], output: object) -> None:
        outputs.append(output_states(output)[0].float())

    with hooks(model, {}, {layer: note}):
        backbone(model)(input_ids=ids, use_cache=False)
        handle = model.get_submodule(norm).register_forward_hook(lambda _module, _args, output: output + 1)
        try:
            backbone(model)(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
    size = float(outputs[0].abs().max())
    return torch.allclose(outputs[1] - outputs[0], torch.ones_like(outputs[0]), atol=max(1e-3, 1e-2 * size))


@dataclass
class PostNormGap(LayerGap):
    """Running sums for one run of removed layers behind a norm.

    With u the projection's output for the inputs x, z = g ∘ u/rms(u) what the norm makes of it, and t = z + m what
    it should put out instead (m: what the missing layers added), the norm gets a preliminary gain G = √E[t²] in each
    channel. The projection's new output should point where t/G does. In the units of u that is
    T = rms(u′) · (t/G)/rms(t/G), with u′ = (g/G) ∘ u, which the old weights give; rows weigh as their error counts
    in the output. The gains are fitted last, by least squares in each channel.

    Attributes:
        norm: The norm.
        balance: G, `[channels]`, from the first window.
        sample: Rows of the inputs, of t and of 1/E, over some fitting tokens.
        checks: The same rows and those of m, over the held-out tokens.
    """

    norm: PostNorm = field(kw_only=True)
    balance: torch.Tensor | None = None
    sample: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    checks: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def update(self, inputs: torch.Tensor, states: Sequence[torch.Tensor], fitting: bool) -> None:
        """Add one window: the projection's inputs, and the residual stream before and after every layer."""
        start, end = (states[place].to(inputs.device) for place in (self.removed[0], self.removed[-1] + 1))
        energy = torch.maximum(start.square().sum(dim=1), end.square().sum(dim=1))
        share = energy.clamp_min(torch.finfo(energy.dtype).tiny).reciprocal()[:, None]
        missing = end - start
        outputs = inputs @ self.weight.float().T
        wanted = self.norm.gain * self.norm.direction(outputs) + missing
        if self.balance is None:
            sizes = wanted.square().mean(dim=0).sqrt()
            self.balance = sizes.clamp_min(1e-3 * float(sizes.mean()) + torch.finfo(sizes.dtype).tiny)
        if not fitting:
            self.checks.append((inputs, wanted, share, missing))
            return
        before = self.norm.gain / self.balance * outputs
        after = wanted / self.balance
        lengths = [
            (each.square().mean(dim=1, keepdim=True) + self.norm.epsilon).sqrt() for each in (before, after)
        ]
        targets = lengths[0] / lengths[1] * after
        weights = lengths[1] / lengths[0] * share.sqrt()
        rows = inputs * weights
        self.gram = self.gram + rows.T @ rows
        self.cross = self.cross + rows.T @ ((targets - before) * weights)
        self.tokens += len(rows)
        if (room := SAMPLED_TOKENS - sum(len(each) for each, _, _ in self.sample)) > 0:
            self.sample.append((inputs[:room], wanted[:room], share[:room]))

    def repair(self) -> GapRepair:
        """Solve for both new weights, and keep them if held-out text gains."""
        if self.balance is None:
            raise AssertionError("no text was read")
        change = solve(self.gram, self.cross, self.tokens)
        weight = (self.norm.gain / self.balance)[:, None] * self.weight.float() + change.T
        gain = self._gain(weight)
        tokens = sum(len(rows) for rows, *_ in self.checks)
        before = sum(energy_of(missing * share.sqrt()) for _, _, share, missing in self.checks) / tokens
        after = (
            sum(
                energy_of((wanted - gain * self.norm.direction(inputs @ weight.T)) * share.sqrt())
                for inputs, wanted, share, _ in self.checks
            )
            / tokens
        )
        tensors = {}
        if after < before:
            tensors = {
                self.projection.name: as_channels_first(weight, self.projection),
                f"{self.norm.module}.weight": gain - self.norm.offset,
            }
        return GapRepair(tensors, before, min(before, after))

    def _gain(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the gain of each channel that fits the sampled tokens best, `[channels]`."""
        products = torch.zeros_like(self.norm.gain)
        squares = torch.zeros_like(self.norm.gain)
        for inputs, wanted, share in self.sample:
            direction = self.norm.direction(inputs @ weight.T)
            products += (direction * wanted * share).sum(dim=0)
            squares += (direction.square() * share).sum(dim=0)
        return products / squares.clamp_min(torch.finfo(squares.dtype).tiny)

    def free(self) -> None:
        """Free the memory of the sums."""
        super().free()
        self.sample.clear()
        self.checks.clear()
