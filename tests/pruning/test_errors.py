"""Every error is one line, whatever it quotes."""

import pickle

import pytest

from pruning.errors import ModelError, PruningError, RecipeError


@pytest.mark.parametrize("kind", [PruningError, ModelError, RecipeError])
def test_what_a_message_quotes_makes_no_second_line_and_moves_no_cursor(kind):
    error = kind("The config sets 'a\nb\r\x1b[2J\u2028c' to 10.")
    assert str(error) == "The config sets 'a b  [2J c' to 10."


def test_an_error_crosses_to_another_process():
    error = pickle.loads(pickle.dumps(RecipeError("Too many.", ("steps", 0))))
    assert (str(error), error.place) == ("Too many.", ("steps", 0))
