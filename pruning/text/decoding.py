"""What transformers' generation is given: sampling noise, a way to stop, and a stream of text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria, TextIteratorStreamer

from pruning.loading.given import CausalLM


class GumbelNoise(LogitsProcessor):
    """Sampling as an argmax: logits + temperature · Gumbel noise drawn from (seed, position).

    The largest of the noisy logits is a draw from the softmax (Gumbel-max trick; Maddison et al.,
    2014, A* Sampling, §2). Two models that get the same noise differ only where their predictions
    do, so the texts of a base and a pruned model can be compared; and no global random state is
    touched.
    """

    def __init__(self, temperature: float, seed: int):
        self.temperature, self.seed = temperature, seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add the noise of the next position to the scores, `[batch, vocabulary]`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 % 2**62 + input_ids.shape[1])
        noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))
        return scores + self.temperature * gumbel.to(scores)


class StopWhen(StoppingCriteria):
    """Ends a generation as soon as `stopped`, called after every token, returns true."""

    def __init__(self, stopped: Callable[[], bool]):
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return whether each sequence of the batch ends here, `[batch]`."""
        return torch.full((input_ids.shape[0],), self._stopped(), device=input_ids.device)


class TextStreamer(TextIteratorStreamer):
    """Streams a text without the tokens that end it: not all of them are special ones, which are skipped anyway."""

    def __init__(self, model: CausalLM, stop_ids: Sequence[int]):
        super().__init__(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop_ids = set(stop_ids)

    def put(self, value: torch.Tensor) -> None:
        """Receive the prompt, and then one token after the other."""
        if self.next_tokens_are_prompt or int(value) not in self._stop_ids:
            super().put(value)
