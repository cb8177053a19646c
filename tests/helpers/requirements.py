"""Write the requirements files from `pyproject.toml`: `make requirements`."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files() -> dict[str, str]:
    """Return each requirements file and its content.

    `requirements.txt` is what a Space installs: the library, the page, the converter to GGUF, and what draws pictures.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return {
        "requirements.txt": _lines(project["dependencies"] + extras["app"] + extras["gguf"] + extras["plot"]),
        "requirements-dev.txt": _lines(["-r requirements.txt", *extras["dev"]]),
    }


def _lines(requirements: list[str]) -> str:
    header = "# Written by `make requirements` from the table in pyproject.toml."
    return "\n".join([header, *sorted(requirements, key=str.lower)]) + "\n"


if __name__ == "__main__":
    for name, content in files().items():
        (ROOT / name).write_text(content, encoding="utf-8")
