"""The panel of skills and answers says what differs, and no more than the intervals allow."""

from datetime import date

from page.html.abilities import abilities_panel, describe_answers
from pruning import Neurons, Recipe
from pruning.evaluation.abilities import Abilities, AnswerComparison, SkillComparison
from pruning.evaluation.answers import AnswersKept
from pruning.evaluation.paired import Interval, Share
from pruning.evaluation.skills import SkillDifference, SkillResult
from tests.page.html.samples import Page

RECIPE = Recipe(base="tiny", steps=[Neurons(fraction=0.2)])


def compared(low, high):
    difference = SkillDifference(100, Interval(low, -0.1, high), Interval(low, -0.1, high))
    return SkillComparison(
        SkillResult(100, 0, 0.6, 0.3, 0.25, None), SkillResult(100, 0, 0.5, 0.3, 0.15, None), difference
    )


def answers(share):
    return AnswerComparison(50, 20, 1, 7, AnswersKept(Share(0.2, share, 0.6, 20), 6, 0.5))


def text_of(abilities, recorded=None):
    return Page(abilities_panel(abilities, RECIPE, recorded)).text


def test_both_accuracies_stand_beside_chance_with_a_sentence_for_the_difference():
    text = text_of(Abilities(compared(-0.2, -0.05), {"facts": compared(-0.2, -0.05)}, answers(0.4)))
    assert all(part in text for part in ("60.0%", "50.0%", "30.0%", "0.250 → 0.150", "Facts"))
    assert "The accuracy is lower: −10.0 points" in text
    assert "Of the 20 good answers of the original, 40% are still good: 95% interval 20% to 60%." in text


def test_a_difference_within_its_interval_is_none():
    assert "No difference in accuracy beyond chance" in text_of(Abilities(compared(-0.2, 0.01), {}))


def test_it_says_of_which_model_and_of_which_day_it_is():
    text = text_of(Abilities(compared(-0.2, 0.01), {}), date(2026, 11, 27))
    assert "20% of the MLP neurons removed. Recorded on 27 November 2026." in text
    assert "Recorded" not in text_of(Abilities(compared(-0.2, 0.01), {}))


def test_answers_that_are_missing_are_explained():
    assert "measured next" in text_of(Abilities(compared(-0.2, 0.01), {}))
    assert "cannot chat" in text_of(Abilities(compared(-0.2, 0.01), {}, None, "It cannot chat."))


def test_a_base_without_good_answers_keeps_no_share():
    assert describe_answers(answers(None)).startswith("The original got none of 50 answers good.")
