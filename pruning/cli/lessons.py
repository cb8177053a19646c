"""The command `lessons`."""

from pruning.cli.options import AsJson
from pruning.cli.output import print_rows
from pruning.lessons import LESSONS


def lessons(as_json: AsJson = False) -> None:
    """List the lessons of the course."""
    rows = [
        {
            "name": lesson.key,
            "number": lesson.number,
            "title": lesson.title,
            "introduction": lesson.introduction,
        }
        for lesson in LESSONS
    ]
    print_rows(rows, as_json, "number", "title")
