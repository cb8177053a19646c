"""Statistics of the inputs of a model's projections on a text, computed in one pass.

The *hooked modules* are the projections whose inputs are observed. The input of the projection that writes a
layer's neurons back into the residual stream is the neurons' activations: their moments rank the neurons, and
their second-moment matrix refits the projection to those that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pruning.architectures.lm_head import backbone
from pruning.calibration.hooks import hooks, input_states
from pruning.files import replacing
from pruning.lazy import nn, safetensors, safetensors_torch, torch, transformers
from pruning.memory import available_memory
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT_ROWS = 128
"""How many held-out rows of each module's input are kept, about: evenly from all of the held-out text."""

GRAM_BLOCKS = 4
"""Into how many blocks of columns a symmetric product is split. More of them save little more."""

PRIOR_TOKENS = 8192
"""Repair shrinks toward the untouched weights as if they had been right on this many tokens.

The best ridge for held-out rows of SmolLM2-135M, as a share of the median of the diagonal of H, falls about
as the text grows: 4 for 2,048 tokens, 1 for 7,168, 0.5 for 16,384 (`docs/benchmarks.md`). The median,
because a few neurons with massive activations dominate the mean.
"""


@dataclass(frozen=True)
class InputMoments:
    """Moments of each input of one module, over all tokens of the text.

    Windows are not padded, so no padding is counted.

    Attributes:
        square: E[a²], `[inputs]`, float32.
        sequence: The L2 norm over windows of the mean over tokens of |a| (Minitron's aggregation),
            `[inputs]`, float32.
    """

    square: torch.Tensor
    sequence: torch.Tensor


@dataclass(frozen=True)
class InputGram:
    """Second moments of the inputs of one module, for least squares.

    Attributes:
        gram: H = XᵀX over the fitting part of the text, `[inputs, inputs]`, float32, not divided by the
            number of tokens.
        heldout: Rows of X that `gram` does not include, `[rows, inputs]`, to check a fit on.
        tokens: The number of rows in `gram`.
        saved: The inverse, if it was read from a file.
    """

    gram: torch.Tensor
    heldout: torch.Tensor
    tokens: int
    saved: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """The size of the matrices, including the inverse once it has been computed."""
        matrices = (self.gram, self.heldout, self.__dict__.get("inverse"))
        return sum(matrix.nbytes for matrix in matrices if matrix is not None)

    @property
    def damping(self) -> float:
        """λ, as a share of the median of the diagonal of H."""
        return PRIOR_TOKENS / self.tokens

    @property
    def has_inverse(self) -> bool:
        """Whether the inverse was read or computed before."""
        return self.saved is not None or "inverse" in self.__dict__

    @cached_property
    def ridge(self) -> float:
        """λ̄ = λ · median(diag H), over the inputs that are ever nonzero: 0 only if none is."""
        diagonal = self.gram.diagonal()
        firing = diagonal[diagonal > 0]
        return self.damping * float(firing.median()) if len(firing) else 0.0

    @cached_property
    def inverse(self) -> torch.Tensor:
        """(H + λ̄ I)⁻¹, `[inputs, inputs]`, float32: computed when first asked for, then kept.

        Inverted by Cholesky after scaling the diagonal to ones, D (D A D)⁻¹ D with D = diag(A)^(-1/2), so
        that float32 is enough even if some inputs are a thousand times as strong as others; float64 if it is
        not. Zero if H is not finite.
        """
        if self.saved is not None:
            return self.saved
        for precision in (torch.float32, torch.float64):
            system = self.gram.to(precision, copy=True)
            system.diagonal().add_(self.ridge or 1.0)
            scale = system.diagonal().rsqrt()
            factor, failed = torch.linalg.cholesky_ex(system.mul_(scale).mul_(scale[:, None]))
            if not failed:
                inverse = torch.cholesky_inverse(factor).mul_(scale).mul_(scale[:, None])
                # LAPACK writes by columns; of a symmetric matrix the transpose is the same, by rows.
                return inverse.T.float().contiguous()
        return torch.zeros_like(self.gram)


class Statistics:
    """Moments and second moments of the inputs of some modules of one model, over one text.

    Second moments take `inputs²` numbers for each module. They are all kept if they fit in `budget` bytes.
    Otherwise the model reads the text again for each batch of modules that fits, when the first of these is
    asked for; so ask in order.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        hooked_modules: Sequence[str],
        fitting: Sequence[torch.Tensor],
        heldout: Sequence[torch.Tensor],
        budget: int | None = None,
        progress: Reporter = silent,
    ):
        """Read the text.

        Args:
            model: The model that reads it.
            hooked_modules: The names of the projections whose inputs are observed.
            fitting: Windows of token numbers, for moments and for second moments.
            heldout: Windows for moments and for the rows that a fit is checked on.
            budget: Bytes that second moments may take; by default a quarter of the free memory.
            progress: Called before each window.
        """
        if budget is None:
            budget = available_memory() // 4
        self._batches = list(_batches(hooked_modules, model, budget))
        if not self.complete:
            self._model, self._fitting, self._heldout = model, fitting, heldout
        self.moments, self._grams = _collect(
            model, hooked_modules, self._batches[0], fitting, heldout, progress
        )

    @property
    def complete(self) -> bool:
        """Whether all second moments are in memory, so that the model is not needed again."""
        return len(self._batches) == 1

    @property
    def bytes(self) -> int:
        """The size of the second moments held in memory."""
        return sum(gram.bytes for gram in list(self._grams.values()))

    def gram(self, module: str, progress: Reporter = silent) -> InputGram:
        """Return the second moments of a hooked module, after reading the text again if necessary."""
        if module not in self._grams:
            batch = next(batch for batch in self._batches if module in batch)
            self._grams = {}
            _, self._grams = _collect(self._model, (), batch, self._fitting, self._heldout, progress)
        return self._grams[module]

    def save(self, file: Path, progress: Reporter = silent) -> bool:
        """Write the statistics to a safetensors file; return False if not all are in memory.

        Args:
            file: The file to write.
            progress: Called before each module, whose matrix is inverted.
        """
        if not self.complete:
            return False
        tensors = {}
        for number, (module, moments) in enumerate(self.moments.items()):
            progress(Progress("Inverting second moments, projections", number, len(self.moments)))
            gram = self._grams[module]
            tensors[f"{module}/square"] = moments.square.cpu()
            tensors[f"{module}/sequence"] = moments.sequence.cpu()
            tensors[f"{module}/gram"] = gram.gram.cpu()
            tensors[f"{module}/inverse"] = gram.inverse.cpu()
            tensors[f"{module}/heldout"] = gram.heldout.cpu()
        tokens = next(iter(self._grams.values())).tokens
        with replacing(file) as temporary:
            safetensors_torch.save_file(tensors, temporary, metadata={"tokens": str(tokens)})
        return True


class SavedStatistics:
    """Statistics in a file; second moments are read only when they are asked for."""

    bytes: int = 0
    """What is held in memory: nothing, since the file is mapped."""

    def __init__(self, file: Path, device: torch.device | str = "cpu"):
        """Open the file.

        Args:
            file: What `Statistics.save` wrote.
            device: Where the tensors are read to.

        Raises:
            SafetensorError: The file is damaged.
            OSError: The file is missing or cannot be read.
            ValueError: The file holds something else.
        """
        self._file = safetensors.safe_open(file, framework="pt", device=str(device))
        self._tokens = int((self._file.metadata() or {}).get("tokens", ""))
        names = self._file.keys()
        modules = [name.removesuffix("/square") for name in names if name.endswith("/square")]
        self.moments: Mapping[str, InputMoments] = {
            module: InputMoments(
                square=self._file.get_tensor(f"{module}/square"),
                sequence=self._file.get_tensor(f"{module}/sequence"),
            )
            for module in modules
        }

    def gram(self, module: str, progress: Reporter = silent) -> InputGram:  # noqa: ARG002 (as Statistics.gram)
        """Return the second moments of a hooked module."""
        return InputGram(
            gram=self._file.get_tensor(f"{module}/gram"),
            heldout=self._file.get_tensor(f"{module}/heldout"),
            tokens=self._tokens,
            saved=self._file.get_tensor(f"{module}/inverse"),
        )


def read_statistics(file: Path, device: torch.device | str = "cpu") -> SavedStatistics | None:
    """Open the statistics in a file, to be read to a device; return None if it is missing or damaged."""
    try:
        return SavedStatistics(file, device)
    except (safetensors.SafetensorError, OSError, ValueError):
        return None


def moments_of(
    model: PreTrainedModel, hooked_modules: Sequence[str], windows: Windows, progress: Reporter = silent
) -> Mapping[str, InputMoments]:
    """Return the moments of any number of modules over all of a text, without second moments."""
    return _collect(model, hooked_modules, (), windows.fitting, windows.heldout, progress)[0]


class _InputSums:
    """Running sums over the inputs of one module."""

    def __init__(self, moments: bool, gram: bool, stride: int):
        self._moments, self._gram, self._stride = moments, gram, stride
        self._square = self._means = torch.zeros(())
        self._matrix: torch.Tensor | None = None
        self._rows: list[torch.Tensor] = []
        self.heldout = False

    def update(self, args: tuple, kwargs: Mapping[str, object]) -> None:
        """Add the inputs of one window, `[1, tokens, inputs]` or, in OPT, `[tokens, inputs]`."""
        window = input_states(args, kwargs).detach().flatten(0, -2).float()
        if self._moments:
            # Summed in float32 within a window: a sum in float64 takes twice the time.
            self._square = self._square + window.square().sum(dim=0).double()
            self._means = self._means + window.abs().mean(dim=0).square()
        if self._gram and self.heldout:
            self._rows.append(window[:: self._stride].clone())
        elif self._gram:
            if self._matrix is None:
                self._matrix = window.new_zeros(window.shape[1], window.shape[1])
            _add_upper_gram(self._matrix, window)

    def moments(self, tokens: int) -> InputMoments:
        return InputMoments(square=(self._square / tokens).float(), sequence=self._means.sqrt().float())

    def gram(self, tokens: int) -> InputGram:
        if self._matrix is None:
            raise ValueError("second moments need at least one window to fit on")
        _mirror_upper_gram(self._matrix)
        return InputGram(self._matrix, torch.cat(self._rows), tokens)


def _add_upper_gram(matrix: torch.Tensor, rows: torch.Tensor) -> None:
    """Add XᵀX to a matrix, on and above its diagonal: a product of blocks takes three fifths of the whole one's time.

    Args:
        matrix: `[inputs, inputs]`, changed in place. What is below its diagonal means nothing afterwards.
        rows: X, `[tokens, inputs]`.
    """
    for block in _gram_blocks(matrix):
        matrix[block, block.start :].addmm_(rows[:, block].T, rows[:, block.start :])


def _mirror_upper_gram(matrix: torch.Tensor) -> None:
    """Copy what is above the diagonal of a square matrix to below it, block by block."""
    for block in _gram_blocks(matrix):
        corner = matrix[block, block]
        corner.copy_(corner.triu() + corner.triu(1).T)
        matrix[block.stop :, block] = matrix[block, block.stop :].T


def _gram_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    step = -(-len(matrix) // GRAM_BLOCKS)
    for start in range(0, len(matrix), step):
        yield slice(start, min(start + step, len(matrix)))


def _collect(
    model: PreTrainedModel,
    moment_modules: Sequence[str],
    gram_modules: Sequence[str],
    fitting: Sequence[torch.Tensor],
    heldout: Sequence[torch.Tensor],
    progress: Reporter,
) -> tuple[Mapping[str, InputMoments], Mapping[str, InputGram]]:
    """Read a text once; return the moments of some modules and the second moments of some."""
    fitting_tokens, heldout_tokens = (sum(map(len, windows)) for windows in (fitting, heldout))
    stride = max(1, round(heldout_tokens / HELD_OUT_ROWS))
    sums = {
        name: _InputSums(name in moment_modules, name in gram_modules, stride)
        for name in dict.fromkeys([*moment_modules, *gram_modules])
    }
    body = backbone(model)
    windows = [(window, False) for window in fitting] + [(window, True) for window in heldout]
    with torch.no_grad(), hooks(model, {name: module.update for name, module in sums.items()}):
        for number, (window, is_heldout) in enumerate(windows):
            progress(Progress("Reading the calibration text, windows", number, len(windows)))
            for module in sums.values():
                module.heldout = is_heldout
            body(input_ids=window[None].to(model.device), use_cache=False)
    progress(Progress("Reading the calibration text, windows", len(windows), len(windows)))
    return (
        {name: sums[name].moments(fitting_tokens + heldout_tokens) for name in moment_modules},
        {name: sums[name].gram(fitting_tokens) for name in gram_modules},
    )


def _batches(hooked_modules: Sequence[str], model: nn.Module, budget: int) -> Iterator[list[str]]:
    """Yield batches of modules whose second moments fit in the budget together, at least one in each."""
    batch: list[str] = []
    free = budget
    for name in hooked_modules:
        width = _input_width(model.get_submodule(name))
        size = 4 * width * (2 * width + HELD_OUT_ROWS)
        if batch and size > free:
            yield batch
            batch, free = [], budget
        batch.append(name)
        free -= size
    yield batch


def _input_width(projection: nn.Module) -> int:
    """Return the number of inputs of a projection: a linear layer, or a router with a weight of the same layout."""
    weight = cast(torch.Tensor, projection.weight)
    return weight.shape[0 if isinstance(projection, transformers.pytorch_utils.Conv1D) else -1]
