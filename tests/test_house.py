"""
Facts about the house: which file imports which, what stands where, and that the lists of files are true. They are read
from the syntax trees: what stands in a function that is hardly ever called is seen as well.
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
    "play.py": {"look", "finetune", "train_gpt2", "hellaswag"},
    "look.py": {"train_gpt2", "hellaswag"},
    "finetune.py": {"train_gpt2", "hellaswag"},  # never play, of which it is a command
    "train_gpt2.py": {"hellaswag"},  # never fineweb: training needs shards, not the program that made them
    "hellaswag.py": set(),
    "fineweb.py": set(),
}
# What may be called while a file is imported: it makes a value, and neither prints, opens nor downloads anything.
HARMLESS = {"dict", "dict.fromkeys", "set", "range", "re.compile",
            "os.path.abspath", "os.path.dirname", "os.path.join",
            "knob", "field",  # the fields of dataclasses
            "dataclass", "classmethod", "staticmethod", "property",  # decorators
            "contextlib.contextmanager", "functools.lru_cache", "torch.no_grad"}
WAYS_OUT = {"fail", "exit", "quit", "SystemExit"}  # other ways to fail than a UserError
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
    What a file imports, at its beginning or in a function -> set of names, as long as it takes to know which file of
    ours it is: train_gpt2, support.files, numpy.
    """
    parsed = tree(path)
    nodes = list(ast.walk(parsed))
    if path == "hellaswag.py" and is_main(parsed.body[-1]):
        # the one exception: run by itself it is a command of play.py, which imports it
        nodes = [n for n in nodes if n not in parsed.body[-1].body or ast.unparse(n) != "import play"]
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


class AtImport(ast.NodeVisitor):
    """Collects in `called` what an import calls: decorators and values, not what is in the bodies of functions."""

    def __init__(self):
        self.called = []

    def visit_FunctionDef(self, node):
        self.decorated(node)
        for value in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(value)

    def visit_ClassDef(self, node):
        self.decorated(node)
        for part in (*node.bases, *node.body):
            self.visit(part)

    def decorated(self, node):
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call):
                self.visit(decorator)
            else:
                self.called.append(ast.unparse(decorator))

    def visit_Lambda(self, node):
        pass

    def visit_Call(self, node):
        self.called.append(ast.unparse(node.func))
        self.generic_visit(node)


# --- imports --------------------------------------------------------------------------------------

HOUSE = {*map(module, [*TOP, *SUPPORT]), *map(module, MAY_IMPORT), "tools", "tests", "exercises", "conftest",
         "pages", "small_runs"}


@pytest.mark.parametrize("path", TOP)
def test_imports_go_one_way(path):
    """
    play -> look, finetune -> train_gpt2 -> hellaswag -> support, and fineweb -> support. So whoever changes a file
    knows which others can notice.
    """
    assert path in MAY_IMPORT, "a new file: say in MAY_IMPORT what it stands on"
    ours = {name for name in imports(path) & HOUSE if not name.startswith("support")}
    assert ours - MAY_IMPORT[path] == set()


@pytest.mark.parametrize("path", SUPPORT)
def test_support_imports_no_file_of_the_top(path):
    """What stands in support/ can be read, and used, without the lecture."""
    assert {name for name in imports(path) & HOUSE if not name.startswith("support.")} == set()


def test_no_file_imports_itself_in_a_circle():
    """Not at the beginning of a file, and not in a function either, where a circle only hides."""
    left = {module(path): imports(path) for path in (*TOP, *SUPPORT)}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:  # it imports nothing that is left, so it is in no circle
            del left[name]
    assert left == {}


def test_no_test_imports_another():
    """Each file of tests is read and run by itself. What several need is in conftest.py and small_runs.py."""
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
    """tests/test_files.py is about support/files.py, and so on; further ones are about the house and its pages."""
    files = [path for path in (*TOP, *SUPPORT, *TOOLS) if not path.endswith("__init__.py")]
    expected = {f"tests/test_{os.path.basename(path)}" for path in files}
    further = {f"tests/test_{name}.py" for name in ("house", "docs", "docs_zh")}
    assert set(paths("tests/test_*.py")) == expected | further


# --- what stands where ----------------------------------------------------------------------------

@pytest.mark.parametrize("path", [*TOP, *SUPPORT])
def test_importing_a_file_only_defines(path):
    """Nothing is printed, opened or downloaded before somebody asks for it."""
    first, *others = tree(path).body
    assert isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant), "it begins with a docstring"
    odd = [s for s in others if not isinstance(s, DEFINITIONS) and not (path in TOP and is_main(s))]
    assert [ast.unparse(s) for s in odd] == []
    seen = AtImport()
    for statement in others:
        if not is_main(statement):
            seen.visit(statement)
    assert set(seen.called) - HARMLESS == set()


def test_only_files_of_the_top_call_all_reduce():
    """Support returns what happened in this process: where processes wait for each other is seen in the lecture."""
    assert {path: mentions(path, {"all_reduce"}) for path in SUPPORT if mentions(path, {"all_reduce"})} == {}


def test_there_is_one_way_to_fail():
    """Raise UserError: run_program makes a line and an exit code of it, and console.leave alone ends the program."""
    ends = {path: mentions(path, WAYS_OUT) for path in (*TOP, *SUPPORT) if mentions(path, WAYS_OUT)}
    assert ends.keys() == {"support/console.py"} and len(ends["support/console.py"]) == 1, ends


def test_two_files_ask_torchrun_who_this_process_is():
    """The others ask these two, or are told: one place knows how torchrun calls its variables."""
    asked = {}
    for path in (*TOP, *SUPPORT):
        for node in ast.walk(tree(path)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Constant) and child.value in TORCHRUN:
                    asked.setdefault(path, []).append(ast.unparse(node))
    # setup_distributed asks whether there are others at all; it may, until processes.py has a name for that
    assert asked.pop("train_gpt2.py", []) in ([], ["'RANK' in os.environ"])
    assert asked.keys() <= {"support/console.py", "support/processes.py"}, asked


@pytest.mark.parametrize("path", [*TOP, *SUPPORT, *TOOLS])
def test_except_exception_says_whose_it_is(path):
    """A comment there names the library that raises so many things. Around our own code it would hide a NameError."""
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]
    wide = [node.lineno for node in handlers
            if node.type is None or re.search(r"\bException\b", ast.unparse(node.type))]
    tokens = tokenize.generate_tokens(io.StringIO(read(path)).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    assert [line for line in wide if not comments & {line, line + 1}] == []
