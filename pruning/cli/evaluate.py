"""The command `evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pruning.cli.options import AsJson, Device, Model, WithAnswers, WithSkills
from pruning.cli.output import print_json, reporter
from pruning.evaluation import harness, perplexity, skills
from pruning.evaluation.against import Measures, to_dict
from pruning.evaluation.answers import compare, evaluate_answers
from pruning.loading.load import LoadedModel, load
from pruning.report import Measured
from pruning.text.choice import read_text


def evaluate(
    model: Model,
    text: Annotated[
        Path | None, typer.Option("--text", help="A text file, instead of the bundled held-out passages.")
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Tokens to read.", min=2)] = None,
    answers: WithAnswers = False,
    with_skills: WithSkills = False,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="Tasks of lm-evaluation-harness instead, such as hellaswag,arc_easy."),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="The base: each measure is compared with its own.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity, answers and skills.

    Reads the bundled held-out passages in five genres, or a text file.
    """
    content = read_text(text) if text else None
    if tasks is not None:
        harness.check_installed()

    def measure(name: str) -> Measures | dict[str, Any]:
        loaded = load(name, device=device, progress=reporter())
        if tasks is not None:
            return harness.evaluate_tasks(loaded, tasks.split(","), progress=reporter())
        measured, genres = _perplexity(loaded, text, content, tokens)
        return Measures(
            measured,
            genres,
            evaluate_answers(loaded, progress=reporter()) if answers else None,
            skills.measure_skills(loaded, progress=reporter()) if with_skills else None,
        )

    result = measure(model)
    base = measure(against) if against is not None else None
    if isinstance(result, dict):
        print_json({"tasks": result} if base is None else {"tasks": result, "base": base})
        return
    assert not isinstance(base, dict)
    if as_json:
        print_json(to_dict(result, base))
    else:
        _print(result, base)


def _perplexity(
    loaded: LoadedModel, text: Path | None, content: str | None, tokens: int | None
) -> tuple[perplexity.Perplexity, dict[str, perplexity.Perplexity]]:
    if text is not None and content is not None:
        measured = perplexity.perplexity(
            loaded.model, loaded.tokenizer, content, tokens=tokens, name=text.name, progress=reporter()
        )
        return measured, {}
    quality = perplexity.evaluate(loaded, tokens=tokens, progress=reporter())
    return quality.overall, quality.genres


def _print(result: Measures, base: Measures | None) -> None:
    measured = result.perplexity
    assert measured is not None
    print(f"perplexity {measured.value:.3f}, {measured.bits_per_byte:.3f} bits per byte")
    for genre, one in (result.genres or {}).items():
        print(f"  {genre:<14} {one.value:>8.3f}  {one.bits_per_byte:.3f}")
    print(f"on {measured.tokens} tokens ({measured.text})")
    if base is not None and base.perplexity is not None:
        print(f"{measured.value / base.perplexity.value:.3f} times the base's perplexity")
    print_panels(result, base)


def print_panels(result: Measures | Measured, base: Measures | Measured | None = None) -> None:
    """Print how good a model's answers are and what skills it has, beside those of its base."""
    if result.answers is not None:
        print(
            f"answers: {result.answers.good} of {result.answers.items} are good "
            f"({result.answers.right} right, {result.answers.loops} loops)"
        )
        if base is not None and base.answers is not None:
            kept = compare(base.answers, result.answers).kept
            share = "none" if kept.share is None else f"{kept.share:.0%} ({kept.low:.0%} to {kept.high:.0%})"
            print(f"  kept of the base's {kept.items} good answers: {share}")
    if result.skills is not None:
        for name, skill in {"overall": result.skills.overall, **result.skills.skills}.items():
            if skill.accuracy is not None:
                print(
                    f"  {name:<14} {skill.accuracy:>6.1%}  (chance {skill.chance:.1%}, {skill.items} items)"
                )
        if base is not None and base.skills is not None:
            print(skills.compare_skills(base.skills, result.skills).overall.describe())
