import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actkit import catalog
from actkit.catalog import FAMILIES, Entry, entry, find_methods, get, methods
from actkit.core.errors import ActkitError, MethodError

METHOD = '''"""Score by distance.

More.
"""

from actkit.catalog import method


@method(source="Lee et al. 2018, arXiv:1807.03888, eq. 2; arXiv:2001.00001")
def distance(acts_ND, /, *, power: float = 2.0) -> float:
    return 0.0
'''
ALL = methods()
INSTRUMENT = {"core", "opening", "export", "store"}
GROUND = {"data", "worlds", "maths", "anatomy", "show"}
REPOSITORY = Path(__file__).parents[1]


def planted(root: Path, text: str = METHOD, name: str = "distance", family: str = "guard") -> Path:
    path = root / family / "monitors" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_entry_is_read_from_the_file(tmp_path: Path) -> None:
    path = planted(tmp_path)
    assert find_methods(tmp_path) == {
        "distance": Entry(
            name="distance",
            family="guard",
            chapter="monitors",
            interface="",
            summary="Score by distance.",
            source="Lee et al. 2018, arXiv:1807.03888, eq. 2; arXiv:2001.00001",
            arxiv=("1807.03888", "2001.00001"),
            object="distance",
            signature="distance(acts_ND, /, *, power: float=2.0) -> float",
            required=("acts_ND",),
            path=path,
        )
    }


DATACLASS = """
@dataclass
class Distance:
    ridge: float
    steps: int = 3
    _: KW_ONLY
    names: list[str] = field(default_factory=list)
    kind: ClassVar[str] = "x"
    mean_D: Tensor = field(init=False)
    _cache: int = 0
"""
WITH_INIT = """
class Distance:
    ridge: float

    def __init__(self, ridge: float, *, steps: int = 3) -> None:
        self.ridge = ridge
"""


@pytest.mark.parametrize(
    ("definition", "signature"),
    [
        (DATACLASS, "Distance(ridge: float, steps: int = 3, *, names: list[str] = ...)"),
        (WITH_INIT, "Distance(ridge: float, *, steps: int=3)"),
        ("\nclass Distance:\n    pass\n", "Distance()"),
    ],
)
def test_signature_of_a_class(tmp_path: Path, definition: str, signature: str) -> None:
    marked = f'"""One line."""\n@method(source="x"){definition}'
    planted(tmp_path, marked)
    assert find_methods(tmp_path)["distance"].signature == signature


def test_private_files_and_protocols_are_no_methods(tmp_path: Path) -> None:
    for name in ("_shared", "__init__"):
        planted(tmp_path, "x = 1", name)
    for name in ("_base", "__init__", "protocol", "tasks"):
        (tmp_path / "guard" / f"{name}.py").write_text("x = 1")
    assert find_methods(tmp_path) == {}


def test_a_method_may_be_a_folder(tmp_path: Path) -> None:
    planted(tmp_path).rename(tmp_path / "moved.py")
    folder = tmp_path / "guard" / "monitors" / "distance"
    folder.mkdir()
    (tmp_path / "moved.py").rename(folder / "__init__.py")
    (folder / "_second_half.py").write_text("x = 1")
    found = find_methods(tmp_path)["distance"]
    assert (found.name, found.chapter, found.path) == (
        "distance",
        "monitors",
        folder / "__init__.py",
    )


def test_a_method_outside_of_a_chapter_is_named(tmp_path: Path) -> None:
    planted(tmp_path).rename(tmp_path / "guard" / "distance.py")
    with pytest.raises(MethodError, match=r"must be in a chapter of guard, got .*distance\.py"):
        find_methods(tmp_path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('"""Doc."""\n', "must mark one object with @method, .* marks 0"),
        (METHOD + METHOD.partition("\n\n\n")[2], "must mark one object with @method, .* marks 2"),
        ('"""Doc."""\n@method\ndef f(): ...\n', "must say source="),
        ('"""Doc."""\n@method(source=NAME)\ndef f(): ...\n', "must say source="),
        ('"""Doc."""\n@method(source=" ")\ndef f(): ...\n', "must say source="),
        ('"""Doc."""\n@catalog.method(source=3)\ndef f(): ...\n', "must say source="),
        ('@method(source="x")\ndef f(): ...\n', "must start with a docstring"),
        ("def f(:\n", "must be valid Python"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str, rule: str) -> None:
    path = planted(tmp_path, text)
    with pytest.raises(MethodError, match=rule) as caught:
        find_methods(tmp_path)
    assert str(path) in str(caught.value)


def test_one_name_in_two_families_is_refused(tmp_path: Path) -> None:
    paths = [planted(tmp_path, family=family) for family in ("read", "guard")]
    with pytest.raises(MethodError, match="must be unique") as caught:
        find_methods(tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(MethodError, match=r"no method 'moment' among \d+; nearest: moments"):
        get("moment")
    with pytest.raises(MethodError, match="no family 'reed'; families: read, find, trace"):
        methods("reed")
    with pytest.raises(KeyError):
        entry("")
    with pytest.raises(ActkitError, match="none is close"):
        entry("qqqq")


@pytest.mark.parametrize("name", ["CAA", "Caa", "steer.caa", "steer.CAA", "Steer.caa"])
def test_a_method_is_found_by_other_ways_to_write_its_name(name: str) -> None:
    assert get(name) is get("caa")


def test_classes_and_hyphens_are_names_too() -> None:
    assert entry("attribution-patching") is entry("AttributionPatching")
    for own in ALL:
        assert entry(own.name) is entry(f"{own.family}.{own.name}") is own


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trace.caa", "caa is of the family steer"),
        ("cook.caa", "families: read, find, trace"),
        ("caaa", "nearest: caa$"),
        ("steer.caaa", "nearest: caa$"),
    ],
)
def test_what_is_no_name_leads_to_one(name: str, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        get(name)


def test_a_class_in_place_of_its_name_is_refused() -> None:
    with pytest.raises(MethodError, match="asked for by its name, got ABCMeta"):
        get(get("caa"))  # type: ignore[arg-type]


def test_methods_of_one_family_are_all_of_its_methods() -> None:
    for family in FAMILIES:
        assert methods(family) == [e for e in ALL if e.family == family]
    assert get("moments") is entry("moments").load()
    assert get("moments").__method__ == entry("moments").source


def test_families_are_the_folders() -> None:
    folders = {p.name for p in catalog.ROOT.iterdir() if (p / "__init__.py").exists()}
    assert set(FAMILIES) == folders - (INSTRUMENT | GROUND | {"scanning", "cli"})


@pytest.mark.parametrize("method", ALL, ids=lambda e: e.name)
def test_method_is_finished(method: Entry) -> None:
    """One line that says what it does, a source, an example that runs, a mirror test."""
    tree = ast.parse(method.path.read_text())
    node = next(n for n in tree.body if getattr(n, "name", "") == method.object)
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    assert method.summary.endswith(".") and len(method.summary) <= 100
    assert "Example:" in (ast.get_docstring(node) or "")
    assert method.load().__doc__
    mirror = REPOSITORY / "tests" / method.family / method.chapter / f"test_{method.name}.py"
    assert mirror.is_file()


def test_listing_imports_no_framework() -> None:
    code = (
        "import sys, actkit.catalog as c; c.methods(); "
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env()
    )
    assert done.stdout.strip() == "[]"


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
