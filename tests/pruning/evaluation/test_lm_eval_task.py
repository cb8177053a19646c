"""The panel as a task of lm-evaluation-harness: it loads there, and gives the same accuracies."""

import importlib.util
import json

import pytest
import yaml

from pruning.evaluation.lm_eval_task import TASK, write_lm_eval_task
from pruning.evaluation.skills import SKILLS, measure_skills, panel
from tests.helpers.models import folder_of, loaded

ITEMS = panel()[::7]


@pytest.fixture
def harness(need, tmp_path, monkeypatch):
    """The harness, with the data sets that it prepares in a folder of the test."""
    for module in ("lm_eval", "datasets", "sacrebleu", "dill"):
        need(importlib.util.find_spec(module), f"{module}, of lm-eval's requirements, is not installed")
    import datasets
    import lm_eval

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return lm_eval


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_harness_gives_the_same_accuracies(family, harness, tmp_path):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(
        include_path=str(write_lm_eval_task(tmp_path / "task", ITEMS)), include_defaults=False
    )
    model = HFLM(pretrained=str(folder_of(family)), device="cpu", dtype="float32", batch_size=16)
    told = harness.simple_evaluate(model, tasks=[TASK], task_manager=tasks, bootstrap_iters=0)["results"]
    ours = measure_skills(loaded(family), ITEMS)
    assert ours.skills.keys() == SKILLS.keys()
    for skill, result in ours.skills.items():
        assert result.excluded == 0
        assert told[f"{TASK}_{skill}"]["acc_bytes,none"] == pytest.approx(result.accuracy), skill
    assert told[TASK]["acc_bytes,none"] == pytest.approx(ours.overall.accuracy)


def test_the_files_hold_every_item_and_the_right_one_in_turn(tmp_path):
    folder = write_lm_eval_task(tmp_path / "task")
    group = yaml.safe_load((folder / f"{TASK}.yaml").read_text(encoding="utf-8"))
    assert group["task"] == [f"{TASK}_{skill}" for skill in SKILLS]
    for skill in SKILLS:
        task = yaml.safe_load((folder / f"{skill}.yaml").read_text(encoding="utf-8"))
        lines = (folder / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()
        documents = [json.loads(line) for line in lines]
        items = [item for item in panel("reported") if item.skill == skill]
        assert [each["choices"][each["right"]] for each in documents] == [item.right for item in items]
        assert [set(each["choices"]) for each in documents] == [set(item.completions) for item in items]
        assert len({each["right"] for each in documents}) > 1
        assert task["dataset_kwargs"]["data_files"]["test"] == str(folder / f"{skill}.jsonl")


def test_writing_again_replaces_the_files(tmp_path):
    folder = write_lm_eval_task(tmp_path / "task", panel()[:3])
    write_lm_eval_task(folder, panel()[:2])
    assert len((folder / "facts.jsonl").read_text(encoding="utf-8").splitlines()) == 2
