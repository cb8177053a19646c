"""The log-likelihood of completions of a context, with everything that they share read once."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, cast

from pruning.architectures.lm_head import backbone, logits_of
from pruning.errors import panics_as_errors
from pruning.lazy import torch, transformers
from pruning.progress import Progress, Reporter, silent
from pruning.text.likelihood import MOST_LOGITS
from pruning.text.tokens import bos_ids, tokenize, usable_window

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

MOST_POSITIONS = 2048
"""The most positions of a batch, in the cache or read, of one row at least."""


@dataclass(frozen=True)
class Question:
    """A context and the completions that are compared.

    Attributes:
        context: What the model reads first; may be empty.
        completions: What may follow, each with the space before it. At least one, none empty.
        passage: A name that questions share whose contexts begin with the same passage; None if there is none.
    """

    context: str
    completions: tuple[str, ...]
    passage: str | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of questions.

    Attributes:
        values: For each question, the log-likelihood of each completion in nats; None for a question that the
            tokenizer cannot write, or that is longer than the model's context.
        tokens_read: How many tokens the model read for them, those included that only fill up a batch.
    """

    values: list[tuple[float, ...] | None]
    tokens_read: int


def score_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    name: str = "questions",
    progress: Reporter = silent,
) -> Scores:
    """Compute the log-likelihood of every completion, given its context.

    A context and a completion are tokenized as one text, so that the tokens are those of running text; a completion
    is scored on the tokens that hold any of it. What the choices of a question, or the questions on a passage, begin
    with is read once, and its cache is kept for the rest. Rows of a batch share the length of what is in the cache,
    so nothing is padded but its end, where no token of the text can see it: the scores are those of reading
    every choice alone.

    A text begins as the tokenizer begins one. If that is with nothing and there is no context either, the BOS or
    else the EOS token stands before it, as in EleutherAI's lm-evaluation-harness.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        questions: The questions, in any order.
        name: What the progress calls them.
        progress: Called before every batch; it may raise `Cancelled`.

    Returns:
        The scores, in the order of the questions.

    Raises:
        ModelError: The tokenizer failed on a text.
    """
    encode = _Encoder(model, tokenizer)
    groups: dict[object, list[int]] = defaultdict(list)
    encoded: list[list[_Sequence] | None] = []
    for number, question in enumerate(questions):
        progress(Progress(f"Splitting {name} into tokens", number, len(questions)))
        encoded.append(encode(question))
        if encoded[-1] is not None:
            groups[number if question.passage is None else question.passage].append(number)
    branches: dict[int, _Node] = {}
    roots: list[_Node] = []
    for numbers in groups.values():
        nodes, tops = _tree([sequences for number in numbers if (sequences := encoded[number]) is not None])
        branches |= dict(zip(numbers, nodes, strict=True))
        roots += tops
    total = sum(len(node.children) for node in branches.values())
    reader = _Reader(model, lambda done: progress(Progress(f"Answering {name}, choices", done, total)))
    with torch.inference_mode():
        reader.read([(root, 0) for root in roots], None)
    values = [
        tuple(node.score + leaf.score for leaf in node.children) if (node := branches.get(number)) else None
        for number in range(len(questions))
    ]
    return Scores(values, reader.tokens_read)


@dataclass(frozen=True)
class _Sequence:
    """The tokens of a context with one completion, and the first of them that is scored."""

    tokens: list[int]
    start: int


@dataclass(eq=False)
class _Node:
    """Tokens that are read after those of the parent.

    Attributes:
        tokens: At least one.
        start: The first of them that is scored.
        children: What may follow; none for the rest of a completion.
        score: The log-likelihood of the scored tokens.
    """

    tokens: list[int]
    start: int
    children: list[_Node] = field(default_factory=list)
    score: float = 0.0


class _Encoder:
    """Turns questions into tokens, or into None where a tokenizer or a model cannot."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._beginning = bos_ids(tokenizer).tolist()

    def __call__(self, question: Question) -> list[_Sequence] | None:
        sequences = []
        for completion in question.completions:
            sequence = self._encode(question.context, completion)
            if sequence is None:
                return None
            sequences.append(sequence)
        return sequences

    def _encode(self, context: str, completion: str) -> _Sequence | None:
        text = context + completion
        tokenized = tokenize(self._tokenizer, text)
        if not self._can_write(text, tokenized.ids):
            return None
        start = next(index for index, end in enumerate(tokenized.ends) if end > len(context))
        beginning = self._beginning
        if not beginning and not start:
            known = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
            beginning = [token for token in known if token is not None][:1]
            if not beginning:
                return None
        tokens = beginning + tokenized.ids
        if len(tokens) > usable_window(self._model, len(tokens)):
            return None
        return _Sequence(tokens, start + len(beginning))

    def _can_write(self, text: str, ids: list[int]) -> bool:
        """Whether the tokens stand for exactly this text, and the model has an embedding for each."""
        if not ids or self._tokenizer.unk_token_id in ids or max(ids) >= self._model.config.vocab_size:
            return False
        with panics_as_errors():
            written = cast(str, self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return written.strip() == text.strip()  # Some tokenizers put a space before a text.


def _tree(group: list[list[_Sequence]]) -> tuple[list[_Node], list[_Node]]:
    """Share the beginnings of questions on one passage.

    Returns:
        For each question, the node whose children are its completions; and the nodes to begin with.
    """
    shared = [_common([one.tokens for one in sequences]) for sequences in group]
    passage = 0
    if len(group) > 1:
        passage = min(
            _common([sequences[0].tokens[:length] for sequences, length in zip(group, shared, strict=True)]),
            *(one.start for sequences in group for one in sequences),
        )
    nodes = []
    for sequences, length in zip(group, shared, strict=True):
        first = sequences[0]
        leaves = [_Node(one.tokens[length:], max(0, one.start - length)) for one in sequences]
        nodes.append(_Node(first.tokens[passage:length], max(0, first.start - passage), leaves))
    if not passage:
        return nodes, nodes
    return nodes, [_Node(group[0][0].tokens[:passage], passage, nodes)]


def _common(sequences: list[list[int]]) -> int:
    """Return how many tokens sequences begin with alike, at least one token of each left over."""
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))
    return min(sum(1 for _ in alike), *(len(sequence) - 1 for sequence in sequences))


@dataclass(frozen=True)
class _Past:
    """What a batch has read.

    Attributes:
        cache: Its keys and values.
        length: Tokens of each row.
        last: The hidden states of the last tokens, `[rows, channels]`.
    """

    cache: DynamicCache
    length: int
    last: torch.Tensor

    def of(self, rows: list[int]) -> DynamicCache:
        """Return a cache of some rows, in any number; this one stays as it is."""
        chosen = copy.copy(self.cache)
        chosen.layers = [copy.copy(layer) for layer in self.cache.layers]
        chosen.batch_select_indices(torch.tensor(rows))
        return chosen


_Placed = tuple[_Node, int]
"""A node, and the row in which its parent was read."""


class _Reader:
    """Reads nodes from the roots to the leaves, and scores them."""

    def __init__(self, model: PreTrainedModel, report: Callable[[int], None]) -> None:
        self._model, self._report = model, report
        # What transformers 5.24 and later call `cache` had a longer name before, which they warn of.
        names = inspect.signature(backbone(model).forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._done = 0
        self.tokens_read = 0

    def read(self, nodes: Sequence[_Placed], past: _Past | None) -> None:
        """Read nodes, each after its row of what was read before, and then their children."""
        by_length: dict[int, list[_Placed]] = defaultdict(list)
        for node, row in nodes:
            if node.children:
                by_length[len(node.tokens)].append((node, row))
        before = past.length if past else 0
        for length, alike in sorted(by_length.items(), key=lambda group: group[0]):
            for batch in _batches(alike, before + length):
                following = self._read_batch(batch, past)
                self.read(
                    [(child, row) for row, (node, _) in enumerate(batch) for child in node.children],
                    following,
                )
        leaves = sorted(
            (placed for placed in nodes if not placed[0].children), key=lambda placed: len(placed[0].tokens)
        )
        if leaves and past:
            self._read_leaves(leaves, past)

    def _read_batch(self, batch: Sequence[_Placed], past: _Past | None) -> _Past:
        """Read nodes of the same length, and return what may be continued."""
        rows = [row for _, row in batch]
        cache = past.of(rows) if past else transformers.DynamicCache(config=self._model.config)
        hidden = self._forward([node.tokens for node, _ in batch], cache)
        # Nothing predicts the first token of a text; it is never scored.
        first = past.last[rows] if past else torch.zeros_like(hidden[:, 0])
        self._score([node for node, _ in batch], torch.cat([first[:, None], hidden[:, :-1]], 1))
        return _Past(cache, (past.length if past else 0) + hidden.shape[1], hidden[:, -1])

    def _read_leaves(self, leaves: Sequence[_Placed], past: _Past) -> None:
        """Read the rest of completions without their last tokens, which predict nothing that is scored."""
        short = [placed for placed in leaves if len(placed[0].tokens) == 1]
        if short:
            self._score([node for node, _ in short], past.last[[row for _, row in short], None])
            self._done += len(short)
        for batch in _batches(leaves[len(short) :], past.length + len(leaves[-1][0].tokens)):
            nodes, rows = [node for node, _ in batch], [row for _, row in batch]
            longest = max(len(node.tokens) for node in nodes) - 1
            padded = [node.tokens[:-1] + [0] * (longest - len(node.tokens) + 1) for node in nodes]
            hidden = self._forward(padded, past.of(rows))
            self._score(nodes, torch.cat([past.last[rows, None], hidden], 1))
            self._done += len(batch)

    def _forward(self, tokens: list[list[int]], cache: DynamicCache) -> torch.Tensor:
        """Return the last hidden states, `[rows, tokens, channels]`; the cache grows."""
        self._report(self._done)
        ids = torch.tensor(tokens, device=self._model.device)
        self.tokens_read += ids.numel()
        past = {self._cache_name: cache}
        return backbone(self._model)(input_ids=ids, use_cache=True, **past).last_hidden_state

    def _score(self, nodes: Sequence[_Node], states: torch.Tensor) -> None:
        """Add up the log-likelihood of the scored tokens; `states[i, j]` predicts token j of node i."""
        places = [
            (row, place, node.tokens[place])
            for row, node in enumerate(nodes)
            for place in range(node.start, len(node.tokens))
        ]
        pieces = max(1, MOST_LOGITS // self._model.config.vocab_size)
        for first in range(0, len(places), pieces):
            rows, columns, tokens = (list(each) for each in zip(*places[first : first + pieces], strict=True))
            logits = logits_of(self._model, states[rows, columns])
            chances = logits.log_softmax(-1)[range(len(tokens)), tokens]
            for row, value in zip(rows, chances.tolist(), strict=True):
                nodes[row].score += value


def _batches(nodes: Sequence[_Placed], positions: int) -> Iterator[Sequence[_Placed]]:
    """Split nodes into batches, each row of which takes a number of positions at most."""
    size = max(1, MOST_POSITIONS // positions)
    yield from (nodes[first : first + size] for first in range(0, len(nodes), size))
