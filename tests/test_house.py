"""
Facts about the house: which file imports which, what stands where, and that the lists of files are true. They are read
from the syntax trees, so that code inside a function counts, too.
"""
import ast
import glob
import io
import os
import re
import tokenize

import pytest
from small_runs import ROOT

# What each file of the top may import besides support/. A new file gets a line here.
MAY_IMPORT = {
    "play.py": {"finetune", "train_gpt2"},  # finetune: play exports tuned models, too
    "plot.py": set(),  # a picture needs logs, not models
    "look.py": {"train_gpt2"},
    "finetune.py": {"train_gpt2"},
    "train_gpt2.py": {"hellaswag"},  # never fineweb: training needs shards, not the program that made them
    "hellaswag.py": set(),
    "fineweb.py": set(),
}
# hellaswag.py run by itself needs the model, and hands its module on: this import alone goes the other way
EXCEPTION = ("hellaswag.py", "import train_gpt2")
TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}  # variables in which torchrun says who a process is
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


# --- the files and what is in them ----------------------------------------------------------------

def paths(pattern):
    """The files that match, from the root on, with / between folders."""
    found = glob.glob(os.path.join(ROOT, pattern), recursive=True)
    return sorted(os.path.relpath(path, ROOT).replace(os.sep, "/") for path in found)


TOP, SUPPORT, TOOLS, TESTS = map(paths, ("*.py", "support/*.py", "tools/*.py", "tests/**/*.py"))


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def tree(path):
    return ast.parse(read(path), path)


def module(path):
    """support/files.py -> support.files"""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_main(statement):
    """Is it `if __name__ == "__main__":`, which an import does not enter?"""
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def imports(path):
    """
    What a file imports, at its beginning or in a function -> set of names of modules: train_gpt2, support.files, numpy.
    """
    parsed = tree(path)
    nodes = list(ast.walk(parsed))
    if is_main(parsed.body[-1]):
        nodes = [n for n in nodes if n not in parsed.body[-1].body or (path, ast.unparse(n)) != EXCEPTION]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = os.path.dirname(path) if node.level else ""  # from . import files
            start = [part for part in (package, node.module) if part]
            names |= {".".join([*start, alias.name]) for alias in node.names}
    parts = [name.split(".") for name in names]
    return {".".join(part[: 2 if part[0] == "support" else 1]) for part in parts}


def mentions(path, names):
    """The lines of a file whose code (not a comment or a text) uses one of these names -> list of line numbers"""
    lines = []
    for node in ast.walk(tree(path)):
        used = {getattr(node, field, None) for field in ("id", "attr", "name")}  # x, module.x, def x or import x
        if used & names:
            lines.append(node.lineno)
    return lines


# --- imports --------------------------------------------------------------------------------------

HOUSE = {*map(module, [*TOP, *SUPPORT]), *map(module, MAY_IMPORT), "tools", "tests", "exercises", "conftest",
         "pages", "small_runs"}


@pytest.mark.parametrize("path", TOP)
def test_imports_go_one_way(path):
    """
    play -> finetune; play, look, finetune -> train_gpt2 -> hellaswag -> support; plot, fineweb -> support. So you know
    which files a change can break.
    """
    assert path in MAY_IMPORT, "a new file: say in MAY_IMPORT what it stands on"
    ours = {name for name in imports(path) & HOUSE if not name.startswith("support")}
    assert ours - MAY_IMPORT[path] == set()


@pytest.mark.parametrize("path", SUPPORT)
def test_support_imports_no_file_of_the_top(path):
    """support/ can be read, and used, without the lecture."""
    assert {name for name in imports(path) & HOUSE if not name.startswith("support.")} == set()


def test_the_lecture_needs_few_names_from_support():
    """Each of them may make a reader leave the page."""
    names = [alias.name for node in tree("train_gpt2.py").body if isinstance(node, ast.ImportFrom)
             for alias in node.names if node.module.split(".")[0] == "support"]
    assert len(names) <= 14, names


def test_no_file_imports_itself_in_a_circle():
    """Not at the beginning of a file, nor in a function, where a circle would only be hidden."""
    left = {module(path): imports(path) for path in (*TOP, *SUPPORT)}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:  # it imports nothing that is left, so it is in no circle
            del left[name]
    assert left == {}


def test_no_test_imports_another():
    """Each file of tests is read and run by itself. Shared code is in conftest.py and small_runs.py."""
    wrong = {path: {name for name in imports(path) if name.startswith("test_")} for path in TESTS}
    assert {path: names for path, names in wrong.items() if names} == {}


# --- lists ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("folder, line", [
    ("support", r"^    (\w+\.py) "), ("tools", r"^    (?:python )?tools/(\w+\.py) ")], ids=["support", "tools"])
def test_the_list_of_a_folder_is_what_is_there(folder, line):
    """The docstring of its __init__.py has a line for each file, which begins with its name, and for no other."""
    docstring = ast.get_docstring(tree(f"{folder}/__init__.py"), clean=False)
    there = [os.path.basename(path) for path in paths(f"{folder}/*.py") if not path.endswith("__init__.py")]
    assert sorted(re.findall(line, docstring, re.MULTILINE)) == there


@pytest.mark.parametrize("readme, heading", [
    ("README.md", "## The files"), ("README.zh.md", "## 文件")], ids=["README.md", "README.zh.md"])
def test_the_readme_names_every_file_and_folder(readme, heading):
    """Each program at the top, each folder with code, pages or pictures in it, and the text to train on."""
    section = read(readme).split(f"\n{heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (\[.*?) \|", section, re.MULTILINE)  # the first of each row
    named = [name for cell in cells for name in re.findall(r"\[([^]]+)\]", cell)]
    folders = {os.path.dirname(path) for path in paths("*/*.py")}
    folders |= {name for name in ("assets", "docs") if os.path.isdir(os.path.join(ROOT, name))}
    assert sorted(named) == sorted([*TOP, "input.txt", *(f"{name}/" for name in folders)])


def test_every_file_has_its_tests():
    """tests/test_files.py is about support/files.py, and so on. Three more are about the house and its pages."""
    files = [path for path in (*TOP, *SUPPORT, *TOOLS) if not path.endswith("__init__.py")]
    expected = {f"tests/test_{os.path.basename(path)}" for path in files}
    further = {f"tests/test_{name}.py" for name in ("house", "docs", "docs_zh")}
    assert set(paths("tests/test_*.py")) == expected | further


# --- what stands where ----------------------------------------------------------------------------

@pytest.mark.parametrize("path", [*TOP, *SUPPORT])
def test_importing_a_file_only_defines(path):
    """A docstring, then definitions: nothing is run before somebody asks for it."""
    first, *others = tree(path).body
    assert isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant), "it begins with a docstring"
    odd = [s for s in others if not isinstance(s, DEFINITIONS) and not (path in TOP and is_main(s))]
    assert [ast.unparse(s) for s in odd] == []


def test_processes_meet_in_one_file():
    """Only support/processes.py calls all_reduce. Elsewhere a collective is seen by its name: sum_over_processes."""
    calls = {path for path in (*TOP, *SUPPORT) if mentions(path, {"all_reduce"})}
    assert calls == {"support/processes.py"}


def test_there_is_one_way_to_fail():
    """
    Raise UserError: run_program makes a line and an exit code out of it, and console.leave alone ends the program.
    --estimate, which is no failure, ends as argparse ends --help.
    """
    ends = {path: mentions(path, {"exit", "quit", "SystemExit"}) for path in (*TOP, *SUPPORT)}
    assert {path: len(lines) for path, lines in ends.items() if lines} == {
        "support/console.py": 1, "support/settings.py": 1}


def test_two_files_ask_torchrun_who_this_process_is():
    """The others call these two: one place knows the names of torchrun's variables."""
    asked = {path for path in (*TOP, *SUPPORT) for node in ast.walk(tree(path))
             if isinstance(node, ast.Constant) and node.value in TORCHRUN}
    assert asked <= {"support/console.py", "support/processes.py"}


@pytest.mark.parametrize("path", [*TOP, *SUPPORT, *TOOLS])
def test_except_exception_says_whose_it_is(path):
    """A comment names the library that raises so many kinds. Around our own code it would hide a NameError."""
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]
    wide = [node.lineno for node in handlers
            if node.type is None or re.search(r"\bException\b", ast.unparse(node.type))]
    tokens = tokenize.generate_tokens(io.StringIO(read(path)).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    assert [line for line in wide if not comments & {line, line + 1}] == []
