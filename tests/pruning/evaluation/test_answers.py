"""Answers of a model to the bundled questions, and how many of the base's good ones a pruned model keeps."""

import json
import sys

import pytest

from pruning.cli import main
from pruning.evaluation import answers as panel_answers
from pruning.evaluation.answers import Answers, Judged, compare, evaluate_answers
from pruning.evaluation.panels import answers as panel
from tests.helpers.models import folder_of, loaded


@pytest.fixture
def shell(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        return main()

    return run


def judged(good, tokens=(1, 2, 3), loops=False):
    return Judged("What?", "This.", right=good, ended=True, loops=loops, tokens=tokens)


def test_the_share_of_good_answers_kept_counts_only_what_was_good():
    base = Answers(tuple(judged(good) for good in (True, True, True, True, False, False)))
    pruned = Answers(tuple(judged(good) for good in (True, False, True, True, True, False)))
    kept = compare(base, pruned)
    assert (kept.kept.share, kept.kept.items) == (0.75, 4)
    assert kept.kept.low < 0.75 < kept.kept.high


def test_an_answer_that_loops_or_does_not_end_is_not_good():
    assert judged(True).good
    assert not judged(True, loops=True).good
    assert not Judged("What?", "This.", right=True, ended=False, loops=False, tokens=()).good


def test_divergence_is_the_share_of_the_answer_that_is_the_same():
    base = Answers((judged(True, (1, 2, 3, 4)), judged(True, (5, 6))))
    assert compare(base, base).diverged == 1
    assert compare(base, Answers((judged(True, (1, 2, 9)), judged(True, ())))).diverged == 0.25


def test_some_questions_are_taken_evenly_from_all_kinds():
    items = panel("reported")
    some = panel_answers._some(items, 24)
    assert len(some) == 24
    assert {item.kind for item in some} == {item.kind for item in items}


def test_every_question_is_answered_in_its_place():
    answers = evaluate_answers(loaded("llama"), questions=9)
    assert [answer.question for answer in answers.judged] == [
        item.question for item in panel_answers._some(panel("reported"), 9)
    ]


def test_the_shell_compares_every_measure_with_the_base(shell, capsys, monkeypatch):
    monkeypatch.setattr(panel_answers, "MAX_NEW_TOKENS", 4)
    folder = str(folder_of("llama"))
    arguments = [
        "evaluate",
        folder,
        "--tokens",
        "200",
        "--answers",
        "--skills",
        "--against",
        folder,
        "--json",
    ]
    assert shell(*arguments) == 0
    values = json.loads(capsys.readouterr().out)
    assert {"good", "items", "loops", "base", "difference", "interval", "kept"} <= values["answers"].keys()
    assert values["answers"]["difference"] == 0
    assert {"accuracy", "items", "chance", "margin", "base", "difference", "interval"} <= values["skills"][
        "overall"
    ].keys()
    assert values["skills"]["overall"]["difference"] == 0
    assert values["against"]["perplexity"]["ratio"] == 1


def test_a_task_that_does_not_exist_is_refused_in_one_line(shell, capsys, need):
    import importlib.util

    need(importlib.util.find_spec("datasets"), "datasets is not installed")
    assert shell("evaluate", folder_of("llama"), "--tasks", "no_such_task") == 2
    assert "no task 'no_such_task'" in capsys.readouterr().err


def test_what_tasks_need_is_named_if_it_is_missing(shell, capsys, monkeypatch):
    monkeypatch.setattr("pruning.evaluation.harness.NEEDED", ("lm_eval", "nowhere_to_be_found"))
    assert shell("evaluate", folder_of("llama"), "--tasks", "hellaswag") == 2
    assert "nowhere_to_be_found is not installed" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_answers_a_good_part_of_the_questions(smollm2):
    answers = evaluate_answers(smollm2, questions=30)
    assert answers.good >= 9
    assert answers.loops <= 5
