"""One layer of a pruned model, fitted to the base model's residual stream: the unit of reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pruning.architectures.anatomy import TensorSpec
from pruning.architectures.matrices import as_channels_first
from pruning.calibration.hooks import hooks
from pruning.calibration.residual_streams import LayerCall
from pruning.lazy import nn, torch

LEARNING_RATE = 0.01
"""The largest step of the optimizer, as a share of a tensor's root mean square."""

WARM_UP = 0.1
"""The share of all steps in which the learning rate rises; then it falls to zero along a cosine."""

DAMPINGS = (10.0, 1.0, 0.1, 0.01)
"""Candidates for λ, from the most cautious on."""

BETAS = (0.9, 0.95)
"""Adam's decay rates of gradients and of their squares, short because there are few steps."""


@dataclass
class LayerStudent:
    """A layer of the pruned model, with its inputs and its targets in every window.

    Attributes:
        layer: A copy of the layer, which is changed in place.
        calls: How to call it on each window.
        states: Its inputs in each window, `[1, tokens, channels]`.
        targets: What it should output there, `[1, tokens, channels]`.
        fitting: How many windows, from the first on, it is fitted to; the others are held out.
        report: Called before the layer reads a window; it may raise `Cancelled`.
        new_values: Its new parameters, by their names in the layer.
        error: The loss on held-out windows.
    """

    layer: nn.Module
    calls: Sequence[LayerCall]
    states: Sequence[torch.Tensor]
    targets: Sequence[torch.Tensor]
    fitting: int
    report: Callable[[], None] = lambda: None
    new_values: dict[str, torch.Tensor] = field(default_factory=dict)
    error: float = field(init=False)

    def __post_init__(self) -> None:
        self.error = self.heldout_loss()

    def refit(self, projection: str, spec: TensorSpec) -> float | None:
        """Add to an output projection what its inputs can predict of what the layer's output misses.

        argmin_V Σ_t ‖x_t V − (h_t − ĥ_t)‖² / E_t + λ̄ ‖V‖² with E_t = max(‖h_t‖², ‖ĥ_t‖²),
        λ̄ = λ · mean(diag H) and H = Σ_t x_t x_tᵀ / E_t: ridge regression toward the weights as they are,
        by Cholesky. The held-out windows, read by the layer itself, choose λ or no change.

        Args:
            projection: Its name in the layer.
            spec: Its weight in the anatomy, for the order of its axes.

        Returns:
            λ, or None for no change.
        """
        parameter = self.layer.get_parameter(f"{projection}.weight")
        before = parameter.detach().clone()
        mask = before != 0
        gram, cross = self._normal_equations(projection)
        scale = float(gram.diagonal().mean(dtype=torch.float64))
        errors: dict[float | None, float] = {None: self.error}
        best, previous = before, math.inf
        for damping in DAMPINGS if scale > 0 else ():
            damped = gram.clone()
            damped.diagonal().add_(damping * scale)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if failed:
                break
            parameter.data = before + as_channels_first(torch.cholesky_solve(cross, factor).T, spec) * mask
            error = self.heldout_loss()
            if error >= previous:
                break
            if error < min(errors.values()):
                best = parameter.data
            errors[damping] = previous = error
        parameter.data = best
        if best is not before:
            self.new_values[f"{projection}.weight"] = best.clone()  # Training works in place.
        self.error = min(errors.values())
        return min(errors, key=errors.__getitem__)

    def _normal_equations(self, projection: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return H, `[inputs, inputs]`, and Σ_t x_t (h_t − ĥ_t)ᵀ / E_t, `[inputs, channels]`."""
        gram = cross = torch.zeros(())
        inputs: list[torch.Tensor] = []

        def record(args: tuple, _kwargs: Mapping[str, object]) -> None:
            inputs[:] = [args[0]]

        for window in range(self.fitting):
            self.report()
            with torch.no_grad(), hooks(self.layer, {projection: record}):
                output = self.calls[window](self.layer, self.states[window])
            weights = self._energy(window, output).rsqrt().flatten()[:, None]
            rows = inputs[0].reshape(len(weights), -1) * weights
            gram = gram + rows.T @ rows
            cross = cross + rows.T @ ((self.targets[window] - output)[0] * weights)
        return gram, cross

    def train(self, names: Sequence[str], epochs: int, seed: int) -> int:
        """Train the named parameters, and keep those of the epoch that is best on the held-out windows.

        Returns:
            The epoch, from 1 on; 0 if none was better than before.
        """
        parameters = [self.layer.get_parameter(name).requires_grad_() for name in names]
        sparse = [(p, p != 0) for p in parameters if p.ndim == 2 and bool((p == 0).any())]
        optimizer = torch.optim.Adam(
            [
                {"params": [p], "lr": LEARNING_RATE * float(p.detach().square().mean().sqrt())}
                for p in parameters
            ],
            betas=BETAS,
        )
        steps = epochs * self.fitting
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_share(step, steps))
        generator = torch.Generator().manual_seed(seed % 2**63)
        errors = [self.error]
        best = {name: self.layer.get_parameter(name).detach().clone() for name in names}
        for _ in range(epochs):
            for window in torch.randperm(self.fitting, generator=generator).tolist():
                self.report()
                with torch.enable_grad():
                    self.loss(window).backward()
                for parameter, mask in sparse:
                    if parameter.grad is not None:
                        parameter.grad.mul_(mask)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            errors.append(self.heldout_loss())
            if errors[-1] < min(errors[:-1]):
                best = {name: self.layer.get_parameter(name).detach().clone() for name in names}
        for name, value in best.items():
            self.layer.get_parameter(name).data = value
        self.layer.requires_grad_(False)
        self.error = min(errors)
        best_epoch = errors.index(self.error)
        if best_epoch:
            self.new_values |= best
        return best_epoch

    def loss(self, window: int) -> torch.Tensor:
        """Return the mean over the tokens of a window of ‖h − ĥ‖² / max(‖h‖², ‖ĥ‖²), a scalar."""
        output = self.calls[window](self.layer, self.states[window])
        missing = (output - self.targets[window]).square().sum(dim=-1)
        return (missing / self._energy(window, output)).mean()

    def _energy(self, window: int, output: torch.Tensor) -> torch.Tensor:
        """Return max(‖h‖², ‖ĥ‖²) of each token, `[1, tokens]`."""
        target = self.targets[window].square().sum(dim=-1)
        tiny = torch.finfo(target.dtype).tiny
        return torch.maximum(target, output.detach().square().sum(dim=-1)).clamp_min(tiny)

    def heldout_loss(self) -> float:
        """Return the mean loss over all held-out tokens."""
        with torch.no_grad():
            total = tokens = 0.0
            for window in range(self.fitting, len(self.states)):
                self.report()
                count = self.states[window].shape[1]
                total += float(self.loss(window)) * count
                tokens += count
            return total / tokens


def _lr_share(step: int, steps: int) -> float:
    """Return the share of the largest learning rate: up linearly, then down along half a cosine."""
    return min((step + 1) / max(1, WARM_UP * steps), (1 + math.cos(math.pi * min(1, step / steps))) / 2)
