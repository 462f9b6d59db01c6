"""What a script's source says without running it: siblings, names, arguments, packages and who uses them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deepfashion_training.upstream.source import Source, attributes_read, changes_path, module_names, read_source
from deepfashion_training.upstream.uses import PackageUse, packages


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return folder / "train.py"


def source(folder: Path, text: str, **siblings: str) -> Source:
    return read_source(write(folder, {"train.py": text, **{f"{name}.py": code for name, code in siblings.items()}}))


def used(folder: Path, text: str, **siblings: str) -> dict[str, tuple[tuple[str, ...], bool]]:
    found = packages(source(folder, text, **siblings))
    return {name: (use.used_by, use.guarded) for name, use in found.items()}


def test_siblings_are_found_through_siblings_functions_and_both_kinds_of_package(tmp_path: Path) -> None:
    files = {
        "train.py": """
            import os, numpy, first.second
            from plain import value
            from regular import function, part
            from numpy import old
            def main(args):
                from late import x
                import importlib
                importlib.import_module("literal.module")
        """,
        "first/second.py": "from first import third\nimport not_here",
        "first/third.py": "",
        "first/never.py": "",
        "plain.py": "value = 1",
        "regular/__init__.py": "from .inner import deep\ndef function(): pass",
        "regular/inner.py": "from . import beside\nfrom ..too import far\ndeep = 1",
        "regular/beside.py": "",
        "regular/part.py": "",
        "regular/function.py": "syntax error, but the function of this name is meant",
        "late.py": "",
        "literal/module.py": "",
        "numpy/old.py": "",  # a folder without __init__.py does not displace what is installed
        "wandb/run-1/train.py": "",
    }
    found = read_source(write(tmp_path, files))
    expected = "first.second first.third late literal.module plain regular regular.beside regular.inner regular.part"
    assert sorted(found.siblings) == expected.split()
    assert found.top_names == {"first", "late", "literal", "plain", "regular"}
    assert found.shown("first.second") == "first/second.py"


def test_a_sibling_wins_over_an_installed_package_but_not_over_what_is_built_in(tmp_path: Path) -> None:
    found = source(tmp_path, "import numpy, sys, profile", numpy="", sys="", profile="")
    assert sorted(found.siblings) == ["numpy", "profile"]


@pytest.mark.parametrize("content", [b"x = (\n", b"x = '\xff'\n", b"x = 1\0\n"])
def test_what_does_not_parse_is_a_syntax_error_with_its_file(tmp_path: Path, content: bytes) -> None:
    script = write(tmp_path, {"train.py": "import broken"})
    (tmp_path / "broken.py").write_bytes(content)
    with pytest.raises(SyntaxError) as error:
        read_source(script)
    assert error.value.filename == str(tmp_path / "broken.py")
    assert error.value.lineno in (None, 0, 1)


def test_names_of_module_level_without_those_of_the_main_block(tmp_path: Path) -> None:
    text = """
        import a.b, c.d as e
        from f import g as h, i
        from star import *
        def function(): local = 1
        class Class: attribute = 1
        x, (y, *z) = 1, (2, 3)
        declared: int
        annotated: int = 1
        squares = [n for n in range(3)]
        if x:
            inside = 1
        try:
            tried = 1
        except Exception as error:
            caught = 1
        with open("f") as handle:
            pass
        for item in []: pass
        if (walrus := 1): pass
        if __name__ == "__main__":
            args = 1
        else:
            imported = 1
    """
    expected = (
        "a annotated caught Class e function h handle i imported inside item public squares tried walrus x y z".split()
    )
    assert module_names(source(tmp_path, text, star="public = _private = 1")) == set(expected)


def test_attributes_that_are_read_of_the_arguments(tmp_path: Path) -> None:
    text = """
        from helper import f
        def parse_args(): return args.checked
        def main(args):
            args.stored = args.read.deeper
            args.added += 1
            getattr(args, "asked", None), getattr(args, name), vars(args), other.attribute
    """
    found = source(tmp_path, text, helper="def f(args, x): return lambda: args.sibling")
    assert attributes_read(found) == {"read", "added", "asked", "sibling"}
    assert attributes_read(found, "other") == {"attribute"}


def test_packages_with_what_uses_them_from_main(tmp_path: Path) -> None:
    text = """
        import os, einops, unused_one, asked.deep as deep
        from tool import make as build
        from lib.helpers import helper
        import lib.shapes
        def main(args):
            step()
            lib.shapes.crop(1)
            isinstance(args, (deep.Engine, os.PathLike))
        def step(): return helper
        def never(): unused_one.x
        def parse_args(a=None): build.parser()
    """
    files = {
        "train.py": text,
        "lib/helpers.py": "import torchlike as t\nimport unread\ndef helper(): return t.zeros()\ndef other(): unread.x",
        "lib/shapes.py": "from einops import rearrange\ndef crop(x):\n    def inner(): rearrange(x)\n    return inner",
    }
    found = packages(read_source(write(tmp_path, files)))
    assert found == {
        "asked": PackageUse((), False),
        "einops": PackageUse(("lib/shapes.py crop: rearrange",), False),
        "tool": PackageUse(("train.py parse_args: build",), False),
        "torchlike": PackageUse(("lib/helpers.py helper: t",), False),
        "unread": PackageUse((), False),
        "unused_one": PackageUse((), False),
    }


@pytest.mark.parametrize(
    ("code", "used_by"),
    [
        ("x = pkg.f()", "module level"),
        ("@pkg.f\ndef g(): pass", "module level"),
        ("def g(x=pkg.f): pass", "module level"),
        ("class C(pkg.f): pass", "module level"),
        ("class C:\n    x = pkg.f", "module level"),
        ("class C:\n    @pkg.f\n    def g(self): pass", "module level"),
        ("class VitonHDTestDataset(pkg.f): pass", "module level"),
        ("try:\n    pass\nexcept pkg.f:\n    pass", "module level"),
        ("def main(args): return [pkg.f for _ in args]", "main"),
        ("def main(args): isinstance(pkg.f, int)", "main"),
        ("def main(args): isinstance(args, pkg.f())", "main"),
        ("class C:\n    def g(self): pkg.f\ndef main(args): C()", "C"),
        ("class B:\n    def g(self): pkg.f\nclass C(B): pass\ndef main(args): C()", "B"),
        ("async def g(): pkg.f\ndef main(args): run(g)", "g"),
        ("def g(x: pkg.f) -> pkg.f:\n    y: pkg.f = 1\nz: pkg.f = 1\ndef main(args): g(1)", None),
        ("def main(pkg): pkg.f", None),
        ("def main(args):\n    pkg = args\n    pkg.f", None),
        ("def main(args):\n    import pkg\n    pkg.f", None),
        ("def main(args): isinstance(args, (int, (pkg.f, str))) or isinstance(args, pkg.f | int)", None),
        ("class VitonHDTestDataset:\n    def g(self): pkg.f\ndef main(args): VitonHDTestDataset()", None),
        ("class C:\n    def g(self): pkg.f", None),
        ("if __name__ == '__main__':\n    pkg.f()", None),
    ],
)
def test_what_counts_as_a_use(tmp_path: Path, code: str, used_by: str | None) -> None:
    expected = (f"train.py {used_by}: pkg",) if used_by else ()
    assert used(tmp_path, f"import pkg\n{code}\n") == {"pkg": (expected, False)}


def test_a_name_is_followed_through_re_exports_and_star_imports(tmp_path: Path) -> None:
    text = "from one import main, other\nfrom two import *\ndef parse_args(a): shared()"
    found = used(tmp_path, text, one="from two import shared\ndef main(a): shared()", two="from pkg import shared")
    assert found == {"pkg": (("one.py main: shared", "train.py parse_args: shared"), False)}
    assert used(tmp_path, "from pkg import *")["pkg"] == (("train.py module level: *",), False)


@pytest.mark.parametrize(
    ("code", "guarded"),
    [
        ("try:\n    import pkg\nexcept ImportError:\n    pkg = None", True),
        ("if available():\n    import pkg", True),
        ("with contextlib.suppress(ImportError):\n    import pkg", True),
        ("try:\n    import helper\nexcept ImportError: pass", True),  # which imports pkg
        ("try:\n    import helper\nexcept ImportError: pass\nimport helper", False),
        ("try:\n    import pkg\nfinally:\n    pass", False),
        ("with lock:\n    import pkg", False),
        ("try:\n    import pkg\nexcept ImportError: pass\nimport pkg.part", False),
        ("def main(a):\n    from helper import x", False),
    ],
)
def test_a_guarded_import_is_under_an_if_or_a_try(tmp_path: Path, code: str, guarded: bool) -> None:
    assert used(tmp_path, code, helper="import pkg\nx = 1")["pkg"] == ((), guarded)


def test_siblings_that_never_run_ask_for_nothing(tmp_path: Path) -> None:
    text = "def never():\n    import helper\nif __name__ == '__main__':\n    import helper\ndef main(args): pass"
    assert used(tmp_path, text, helper="import pkg\npkg.f()") == {}


def test_a_script_that_changes_its_path_is_known(tmp_path: Path) -> None:
    assert changes_path(source(tmp_path, "import helper", helper="import sys\nsys.path.insert(0, 'x')"))
    assert not changes_path(source(tmp_path, "import os\nos.path.join('a')"))


def test_sources_and_imports_are_read_without_torch() -> None:
    code = "import sys, deepfashion_training.upstream.imports; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
