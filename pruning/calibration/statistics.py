"""What a model does with a text, seen at the inputs of its projections: one streamed pass.

A *site* is a projection, by its module name. Its input, after the activation function, is what a
neuron says; moments of it rank the neurons, and its second-moment matrix repairs what remains.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pruning.calibration.hooks import hooks
from pruning.files import replacing
from pruning.progress import Progress, Reporter, silent
from pruning.text.tokens import Windows

HELD_OUT_ROWS = 128
"""About so many held-out rows are kept of each site, evenly from all of the held-out text."""

PRIOR_TOKENS = 8192
"""Repair shrinks toward the untouched weights as if they had been right on so many tokens.

The best ridge for held-out rows of SmolLM2-135M, as a share of the median of the diagonal of H, falls about
as the text grows: 4 for 2,048 tokens, 1 for 7,168, 0.5 for 16,384 (`benchmarks/README.md`). The median,
because a few neurons with massive activations rule the mean.
"""


@dataclass(frozen=True)
class SiteMoments:
    """Per neuron of one site, over all tokens of the text; vectors `[neurons]` in float32.

    `square`: E[a²]. `sequence`: the L2 norm over windows of the mean over tokens of |a|
    (Minitron's aggregation). Padding is never seen: windows are not padded.
    """

    square: torch.Tensor
    sequence: torch.Tensor


@dataclass(frozen=True)
class SiteGram:
    """Second moments of one site for least squares.

    `gram`: XᵀX over the fitting part of the text, `[neurons, neurons]`, float32, not divided by the
    number of tokens. `heldout`: rows of X that `gram` has not seen, `[rows, neurons]`, which say whether
    to trust it. `tokens`: rows in `gram`. `saved`: the inverse, where it was read from a file.
    """

    gram: torch.Tensor
    heldout: torch.Tensor
    tokens: int
    saved: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """What the matrices take, the inverse included once it is made."""
        return sum(t.nbytes for t in (self.gram, self.heldout, self.__dict__.get("inverse")) if t is not None)

    @property
    def damping(self) -> float:
        """λ, as a share of the median of the diagonal of H."""
        return PRIOR_TOKENS / self.tokens

    @cached_property
    def ridge(self) -> float:
        """λ̄ = λ · median(diag H); of the neurons that ever fire, so that it is 0 only if none does."""
        diagonal = self.gram.diagonal()
        firing = diagonal[diagonal > 0]
        return self.damping * float(firing.median()) if len(firing) else 0.0

    @cached_property
    def inverse(self) -> torch.Tensor:
        """(H + λ̄ I)⁻¹, `[neurons, neurons]`, float32: made when first asked for, then kept.

        Inverted by Cholesky with a diagonal of ones, D (D A D)⁻¹ D with D = diag(A)^(-1/2): so float32
        is enough where some neurons fire a thousand times as strongly as others; float64 where it is not.
        Zero for what is not finite.
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
    """Moments and second moments of the sites of one model over one text.

    Second moments take `neurons²` numbers a site. Those of all sites are kept where they fit in
    `budget` bytes; otherwise the model reads the text again for each run of sites that fits, when
    they are first asked for, so ask in order.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        fitting: Sequence[torch.Tensor],
        heldout: Sequence[torch.Tensor],
        budget: int | None = None,
        progress: Reporter = silent,
    ):
        if budget is None:
            budget = psutil.virtual_memory().available // 4
        self._batches = list(_batches(sites, model, budget))
        if not self.complete:
            self._model, self._fitting, self._heldout = model, fitting, heldout
        self.moments, self._grams = _collect(model, sites, self._batches[0], fitting, heldout, progress)

    @property
    def complete(self) -> bool:
        """Whether all second moments are in memory, so that the model is not needed again."""
        return len(self._batches) == 1

    @property
    def bytes(self) -> int:
        """What is held in memory."""
        return sum(gram.bytes for gram in list(self._grams.values()))

    def gram(self, site: str, progress: Reporter = silent) -> SiteGram:
        """The second moments of a site."""
        if site not in self._grams:
            batch = next(batch for batch in self._batches if site in batch)
            self._grams = {}
            _, self._grams = _collect(self._model, (), batch, self._fitting, self._heldout, progress)
        return self._grams[site]

    def save(self, file: Path) -> bool:
        """Keep the statistics in a safetensors file; False where not all are in memory."""
        if not self.complete:
            return False
        tensors = {}
        for site, moments in self.moments.items():
            gram = self._grams[site]
            tensors[f"{site}/square"] = moments.square.cpu()
            tensors[f"{site}/sequence"] = moments.sequence.cpu()
            tensors[f"{site}/gram"] = gram.gram.cpu()
            tensors[f"{site}/inverse"] = gram.inverse.cpu()
            tensors[f"{site}/heldout"] = gram.heldout.cpu()
        tokens = next(iter(self._grams.values())).tokens
        with replacing(file) as temporary:
            save_file(tensors, temporary, metadata={"tokens": str(tokens)})
        return True


class SavedStatistics:
    """Statistics read back from a file, second moments only when they are asked for."""

    bytes = 0
    """What is held in memory: the file is mapped."""

    def __init__(self, file: Path, device: torch.device | str = "cpu"):
        """Raises `SafetensorError`, `OSError` or `ValueError` where the file is missing or damaged."""
        self._file = safe_open(file, framework="pt", device=str(device))
        self._tokens = int((self._file.metadata() or {}).get("tokens", ""))
        names = self._file.keys()
        sites = [name.removesuffix("/square") for name in names if name.endswith("/square")]
        self.moments = {
            site: SiteMoments(
                square=self._file.get_tensor(f"{site}/square"),
                sequence=self._file.get_tensor(f"{site}/sequence"),
            )
            for site in sites
        }

    def gram(self, site: str, progress: Reporter = silent) -> SiteGram:
        """The second moments of a site."""
        return SiteGram(
            gram=self._file.get_tensor(f"{site}/gram"),
            heldout=self._file.get_tensor(f"{site}/heldout"),
            tokens=self._tokens,
            saved=self._file.get_tensor(f"{site}/inverse"),
        )


def read_statistics(file: Path, device: torch.device | str = "cpu") -> SavedStatistics | None:
    """Statistics from a file, read to a device, or None where there is none or it is damaged."""
    try:
        return SavedStatistics(file, device)
    except (SafetensorError, OSError, ValueError):
        return None


def moments_of(
    model: nn.Module, sites: Sequence[str], windows: Windows, progress: Reporter = silent
) -> Mapping[str, SiteMoments]:
    """The moments of any number of sites over all of a text, without second moments."""
    return _collect(model, sites, (), windows.fitting, windows.heldout, progress)[0]


class _Site:
    """Running sums over the inputs of one projection."""

    def __init__(self, moments: bool, gram: bool, stride: int):
        self._moments, self._gram, self._stride = moments, gram, stride
        self._square = self._means = self._matrix = 0
        self._rows: list[torch.Tensor] = []
        self.heldout = False

    def update(self, inputs: tuple[torch.Tensor], named: Mapping) -> None:
        """Take in the inputs of one window, `[1, tokens, neurons]` or, in OPT, `[tokens, neurons]`."""
        window = inputs[0].detach().flatten(0, -2).float()
        if self._moments:
            self._square = self._square + window.square().sum(dim=0, dtype=torch.float64)
            self._means = self._means + window.abs().mean(dim=0).square()
        if self._gram and self.heldout:
            self._rows.append(window[:: self._stride].clone())
        elif self._gram:
            if isinstance(self._matrix, int):
                self._matrix = window.new_zeros(window.shape[1], window.shape[1])
            self._matrix.addmm_(window.T, window)

    def moments(self, tokens: int) -> SiteMoments:
        return SiteMoments(square=(self._square / tokens).float(), sequence=self._means.sqrt().float())

    def gram(self, tokens: int) -> SiteGram:
        return SiteGram(self._matrix, torch.cat(self._rows), tokens)


def _collect(
    model: nn.Module,
    moment_sites: Sequence[str],
    gram_sites: Sequence[str],
    fitting: Sequence[torch.Tensor],
    heldout: Sequence[torch.Tensor],
    progress: Reporter,
) -> tuple[Mapping[str, SiteMoments], Mapping[str, SiteGram]]:
    fitted, held_out = (sum(map(len, windows)) for windows in (fitting, heldout))
    stride = max(1, round(held_out / HELD_OUT_ROWS))
    sites = {
        name: _Site(name in moment_sites, name in gram_sites, stride)
        for name in dict.fromkeys([*moment_sites, *gram_sites])
    }
    body = model.base_model
    windows = [(window, False) for window in fitting] + [(window, True) for window in heldout]
    with torch.no_grad(), hooks(model, {name: site.update for name, site in sites.items()}):
        for done, (window, held) in enumerate(windows):
            progress(Progress("Reading the calibration text, windows", done, len(windows)))
            for site in sites.values():
                site.heldout = held
            body(input_ids=window[None].to(model.device), use_cache=False)
    progress(Progress("Reading the calibration text, windows", len(windows), len(windows)))
    return (
        {name: sites[name].moments(fitted + held_out) for name in moment_sites},
        {name: sites[name].gram(fitted) for name in gram_sites},
    )


def _batches(sites: Sequence[str], model: nn.Module, budget: int) -> Iterator[list[str]]:
    """Runs of sites whose second moments fit in the budget together, at least one site each."""
    batch: list[str] = []
    free = budget
    for site in sites:
        module = model.get_submodule(site)
        width = module.in_features if isinstance(module, nn.Linear) else module.nx
        size = 4 * width * (2 * width + HELD_OUT_ROWS)
        if batch and size > free:
            yield batch
            batch, free = [], budget
        batch.append(site)
        free -= size
    yield batch
