"""Small reports, shapes and HTML readers that several tests of the page's HTML share."""

from html.parser import HTMLParser
from statistics import median

from pruning.architectures.shape import Shape
from pruning.evaluation.perplexity import Perplexity, Quality
from pruning.report import Measured, Report
from pruning.text.passages import GENRES
from tests.helpers.models import loaded

VOID_TAGS = {"br"}


def shape():
    return Shape.of(loaded("llama").model.config)


def quality(value, bits_per_byte=1.0, text="held-out passages", genres=GENRES):
    def measured(number):
        return Perplexity(number, 5_000, 512, text, bits_per_byte)

    return Quality(measured(value), {genre: measured(value + place) for place, genre in enumerate(genres)})


def report(original=None, pruned=None, speeds=((), ())):
    """A report of a model of 1,000 parameters, 250 of them removed, with what is given as measured."""
    medians = [median(rounds) if rounds else None for rounds in speeds]
    return Report(
        Measured({"mlp": 1_000}, 4_000_000, original, medians[0], speeds=speeds[0]),
        Measured({"mlp": 750}, 3_000_000, pruned, medians[1], speeds=speeds[1]),
    )


class Page(HTMLParser):
    """HTML as a browser reads it: its tags, its attributes and its text. Tags must be closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.pieces, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID_TAGS:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.pieces.append(data)

    def unexpected(self, *_):
        raise AssertionError("a comment, a declaration or an instruction")

    handle_comment = handle_decl = handle_pi = unknown_decl = unexpected

    @property
    def text(self):
        return "".join(self.pieces)

    def values(self, name):
        return [value for attribute, value in self.attributes if attribute == name]
