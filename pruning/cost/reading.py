"""The cost of text: reading it, writing it, and the statistics of what a model computes on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pruning.cost.cost import Cost, in_sequence
from pruning.cost.passes import FLOAT, Sizes
from pruning.text.answering import BATCH
from pruning.text.choice import Calibration
from pruning.text.generation import SAMPLE_BATCH, SAMPLE_LENGTH
from pruning.text.likelihood import MOST_LOGITS
from pruning.text.own_answers import MAX_NEW_TOKENS, MOST_GENERATED
from pruning.text.passages import CHAT, CHAT_AND_GENERAL, GENERAL, GENRES, SELF_GENERATED, WIKITEXT

HELD_OUT = 8
"""One in eight tokens is held out, as in `pruning.calibration.calibrate`."""

HELD_OUT_ROWS = 128
"""Held-out rows of each module's inputs, as in `pruning.calibration.statistics`."""

BYTES_PER_TOKEN = 650
"""Memory of a token while a tokenizer splits a text: its string, its offsets and its numbers."""

QUESTION_TOKENS = 96
"""The most tokens of a bundled question in a chat format, about."""

SHORT_ANSWER = 24
"""Tokens of an answer of a model that answers briefly."""

WIKITEXT_TOKENS = 2_600_000
"""The tokens of WikiText-2, all of which are split before some are chosen."""

STATISTICS_SHARE = 4
"""Second moments may take one part in four of the free memory; then the text is read again for the rest."""


@dataclass(frozen=True)
class Reading:
    """A text as a model reads it.

    Attributes:
        tokens: How many, at most: a shorter text is not known from a recipe.
        window: How many at a time.
        heldout_window: How many at a time of the part that is held out.
    """

    tokens: int
    window: int
    heldout_window: int

    @classmethod
    def of(cls, calibration: Calibration, sizes: Sizes) -> "Reading":
        """Return how a model of some sizes reads a calibration text."""
        sources = len(GENRES) if calibration.text in (GENERAL, CHAT_AND_GENERAL) else 1
        # Each source is split on its own, and its last eighth is held out.
        share = calibration.tokens // sources
        longest = sizes.limit(calibration.window)
        heldout = share // HELD_OUT
        return cls(calibration.tokens, *(max(1, min(longest, part)) for part in (share - heldout, heldout)))

    @property
    def heldout(self) -> int:
        """Tokens that are held out."""
        return self.tokens // HELD_OUT

    @property
    def fitting(self) -> int:
        """Tokens that are fitted to."""
        return self.tokens - self.heldout

    def forward(self, sizes: Sizes) -> Cost:
        """Return the cost of one pass over the text, window by window."""
        return Cost(
            sizes.forward_flop(self.tokens, self.window), sizes.forward_memory(self.window, self.window)
        )

    def heldout_loss(self, sizes: Sizes) -> Cost:
        """Return the cost of the loss on the held-out part."""
        return losses(sizes, self.heldout, self.heldout_window)


def losses(sizes: Sizes, tokens: int, window: int) -> Cost:
    """Return the cost of the losses of tokens, a window at a time, and of its logits a limited number."""
    window = max(1, min(tokens, window))
    logits = sizes.logits_memory(min(window, max(1, MOST_LOGITS // sizes.vocabulary)))
    return Cost(
        sizes.forward_flop(tokens, window) + sizes.head_flop(tokens),
        max(sizes.forward_memory(window, window), logits),
    )


def tokenizing(text: str, tokens: int) -> Cost:
    """Return the cost of splitting a text, by its name, into tokens."""
    return Cost(memory=BYTES_PER_TOKEN * max(tokens, WIKITEXT_TOKENS if text == WIKITEXT else 0))


def generation(sizes: Sizes, prompt: int, new_tokens: int, batch: int = 1) -> Cost:
    """Return the cost of continuing a prompt with the key-value cache.

    Every new token is one pass over the weights, and attends to all before it. The cache holds a key and a value
    for each token and layer; while it grows, one layer's is there twice. Logits are computed for the last token
    alone; sampling holds them a few times in double precision.
    """
    length = prompt + new_tokens
    flop = sizes.forward_flop(prompt, prompt) + sizes.forward_flop(new_tokens, prompt + new_tokens / 2)
    cache = FLOAT * batch * length * 2 * sizes.keys * (sizes.layers + 1)
    logits = 6 * 2 * FLOAT * batch * sizes.vocabulary
    return Cost(
        batch * (flop + sizes.head_flop(new_tokens)),
        cache + max(sizes.forward_memory(batch * prompt, prompt), logits),
    )


def self_generated(sizes: Sizes, tokens: int) -> Cost:
    """Return the cost of a text that a model writes itself, in batches of texts."""
    texts = -(-tokens // SAMPLE_LENGTH)
    batch = min(SAMPLE_BATCH, texts)
    return generation(sizes, 1, SAMPLE_LENGTH, batch).times(texts / batch)


def chat_answers(sizes: Sizes, tokens: int) -> Cost:
    """Return the cost of a model's answers to questions, in whole batches, until they have a number of tokens.

    Those of the default model come with the package; this is the most that another one takes.
    """
    batches = -(-tokens // (BATCH * SHORT_ANSWER))
    return generation(sizes, QUESTION_TOKENS, MAX_NEW_TOKENS, BATCH).times(batches)


def calibration_text(sizes: Sizes, calibration: Calibration) -> Cost:
    """Return the cost of a calibration text before a model reads it."""
    written = Cost()
    if calibration.text == SELF_GENERATED:
        written = self_generated(sizes, calibration.tokens)
    elif calibration.text in (CHAT, CHAT_AND_GENERAL):
        most = MOST_GENERATED if calibration.text == CHAT_AND_GENERAL else calibration.tokens
        written = chat_answers(sizes, min(calibration.tokens, most))
    return written + tokenizing(calibration.text, calibration.tokens)


def statistics(sizes: Sizes, widths: Sequence[int], reading: Reading, free: int) -> Cost:
    """Return the cost of the moments and second moments of some modules' inputs.

    A module of a width needs width² numbers for H, as many for its inverse, and its held-out rows. All are held
    if a quarter of the free memory has room; otherwise the text is read once for each part that fits.

    Args:
        sizes: The model.
        widths: The number of inputs of each module.
        reading: The text.
        free: Free memory, in bytes.

    Returns:
        The cost, with what is held while the step works. Inverses are not part of it: see `inverse`.
    """
    budget = free // STATISTICS_SHARE
    largest, filled, passes, reserved = 0, 0, 1, 0
    for width in widths:
        size = FLOAT * width * (2 * width + HELD_OUT_ROWS)
        if reserved and reserved + size > budget:
            passes, filled, reserved = passes + 1, 0, 0
        reserved += size
        filled += FLOAT * width * (width + HELD_OUT_ROWS)
        largest = max(largest, filled)
    products = sum(2 * reading.fitting * width**2 for width in widths)
    return in_sequence(
        Cost(products),
        Cost.holding(largest),
        reading.forward(sizes).times(passes),
    )


def inverse(width: int) -> Cost:
    """Return the cost of the inverse of a symmetric matrix by Cholesky, which is then kept.

    n³/3 operations for the factor and 2n³/3 for the inverse; beside the result, the system, the factor and a copy
    in order are held.
    """
    size = FLOAT * width**2
    return Cost(width**3, 4 * size, size)


def refit(width: int, removed: int, outputs: int) -> Cost:
    """Return the cost of refitting one projection to the inputs that are kept (`repair_projection`).

    The smaller of two systems is solved: a third of its size cubed for the factor, and twice its size squared for
    each output; then the rows kept and removed are multiplied. Half of the inputs or fewer: with the inverse.

    Args:
        width: The inputs of the projection.
        removed: How many of them are removed.
        outputs: The outputs of the projection.
    """
    kept = width - removed
    size = min(kept, removed)
    flop = size**3 / 3 + 2 * size**2 * outputs + 2 * kept * removed * outputs
    checks = 2 * HELD_OUT_ROWS * outputs * (width + kept + removed)
    memory = FLOAT * (size * width + 2 * size**2 + 2 * size * outputs + 3 * kept * outputs)
    return Cost(flop + checks, memory)


def refits(count: int, width: int, removed: int, outputs: int, free: int) -> Cost:
    """Return the cost of refitting projections of one size in several layers.

    Inverses are kept beside the second moments, as far as these are held at the same time.
    """
    one = refit(width, removed, outputs)
    if 2 * removed > width:
        return one.times(count)
    most = max(1, free // STATISTICS_SHARE // (FLOAT * width * (2 * width + HELD_OUT_ROWS)))
    held = (min(count, most) - 1) * FLOAT * width**2
    each = inverse(width) + one
    return Cost(count * each.flop, held + each.memory)
