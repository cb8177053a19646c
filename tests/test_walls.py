"""The walls of the house: who may import what, and where families are told apart."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "pruning").rglob("*.py"))
PAGE = [ROOT / "app.py", *sorted((ROOT / "page").rglob("*.py"))]

FLOORS = (
    # From the ground up. A room imports from its own floor and from those below it, for types too.
    {"errors", "progress", "formatting", "files", "version", "memory", "lazy"}
    | {"child_environment", "child_limits", "limited_child"},
    {"schema", "catalog"},
    {"architectures", "surgery", "masked_base"},
    {"loading"},
    {"text"},
    {"runtime", "calibration", "cost"},
    {"criteria", "repair", "distillation"},
    {"steps"},
    {"recipe"},
    {"evaluation"},
    {"report"},
    {"guard"},
    {"saving"},
    {"pipeline", "previews", "pruned", "request"},
    {"streaming", "snapshot", "shape_search", "sharing", "lessons", "estimate"},
    {"__init__", "cli", "__main__"},
)
PAGE_FLOORS = (
    {"html", "workers"},
    {"server", "store"},
    {"sections"},
    {"layout"},
    {"app"},
)
AT_THE_HUB = {"loading", "sharing", "card.py"}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in [*LIBRARY, *PAGE]}


def imported_modules(file: Path) -> set[str]:
    """The modules of the house that a file imports, anywhere in it, for types too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module
                for alias in node.names
            }
    return names & MODULES.keys() - {module_of(file)}


def imported_packages(file: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    packages = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages.add(node.module.split(".")[0])
    return packages


def room_of(module: str) -> str:
    """The first folder or file inside the library or the page."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "app" if module == "app" else "__init__"


def test_no_module_imports_itself_through_others():
    graph = {module: imported_modules(file) for module, file in MODULES.items()}
    finished: set[str] = set()

    def circle_from(module: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in path:
            return (*path[path.index(module) :], module)
        if module in finished:
            return None
        for other in sorted(graph[module]):
            if circle := circle_from(other, (*path, module)):
                return circle
        finished.add(module)
        return None

    assert [circle for module in graph if (circle := circle_from(module, ()))] == []


@pytest.mark.parametrize(
    ("package", "floors"), [("pruning", FLOORS), ("page", PAGE_FLOORS)], ids=["library", "page"]
)
def test_no_room_imports_from_a_floor_above(package, floors):
    height = {room: number for number, floor in enumerate(floors) for room in floor}
    files = {name: file for name, file in MODULES.items() if name.split(".")[0] in (package, "app")}
    files = {name: file for name, file in files.items() if package == "page" or name != "app"}
    homeless = {room_of(name) for name in files} - height.keys() - {"__init__"}
    assert homeless == set(), "give each new room its floor in FLOORS"
    upward = [
        f"{name} imports {other}"
        for name, file in files.items()
        for other in imported_modules(file)
        if other.split(".")[0] == package and other != package
        if height[room_of(other)] > height.get(room_of(name), len(floors))
    ]
    assert upward == []


def test_the_library_does_not_import_the_page():
    page = {"gradio", "spaces", "app", "page"}
    assert [file.name for file in LIBRARY if imported_packages(file) & page] == []


def test_only_loading_and_sharing_speak_to_the_hub():
    speakers = [file for file in LIBRARY if "huggingface_hub" in imported_packages(file)]
    assert [file.name for file in speakers if not {file.parent.name, file.name} & AT_THE_HUB] == []
    web = {"requests", "httpx", "urllib", "aiohttp", "socket"}
    assert [file.name for file in LIBRARY if imported_packages(file) & web] == []


def test_memory_is_measured_in_one_place():
    assert [file.name for file in LIBRARY if "psutil" in imported_packages(file)] == ["memory.py"]
    measures = {"virtual_memory", "SC_PHYS_PAGES", "get_max_memory"}
    readers = [file for file in LIBRARY if any(name in file.read_text(encoding="utf-8") for name in measures)]
    assert {module_of(file) for file in readers} <= {"pruning.memory", "pruning.loading.placement"}


def test_child_processes_and_temporary_folders_have_one_way():
    texts = {module_of(file): file.read_text(encoding="utf-8") for file in LIBRARY}
    starters = {name for name, text in texts.items() if "subprocess" in text or "os.fork" in text}
    assert all("child_environment(" in texts[name] for name in starters)
    makers = {name for name, text in texts.items() if "TemporaryDirectory" in text or "mkdtemp" in text}
    assert makers == {"pruning.files"}


def compares_model_types(node: ast.AST) -> bool:
    """Whether a node is `config.model_type == …`, `… in (…)`, or a match on it."""
    subjects: list[ast.expr] = []
    if isinstance(node, ast.Compare):
        subjects = [node.left, *node.comparators]
    elif isinstance(node, ast.Match):
        subjects = [node.subject]
    names = [part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in subjects]
    return "model_type" in names


def test_families_are_told_apart_in_one_file():
    elsewhere = [
        file.name
        for file in LIBRARY
        if file.name != "families.py"
        and any(map(compares_model_types, ast.walk(ast.parse(file.read_text(encoding="utf-8")))))
    ]
    assert elsewhere == []


@pytest.mark.parametrize("file", PAGE, ids=module_of)
def test_the_page_does_no_arithmetic_on_models(file):
    assert imported_packages(file) & {"torch", "transformers", "safetensors", "numpy"} == set()


def test_criteria_know_neither_families_nor_steps():
    for file in LIBRARY:
        if file.parent.name == "criteria":
            rooms = {room_of(module) for module in imported_modules(file)}
            assert not rooms & {"architectures", "steps"}, file.name
