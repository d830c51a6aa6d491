"""What holds in every module: the order of imports, sizes, what is never called, and a quick `import fusetune`."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from fusetune import _optional, registry

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fusetune"
MODULES = sorted(SOURCE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

LAYERS = [
    "errors",
    "_optional",
    "_private",
    "security",
    "registry",
    "config",
    "types",
    "backbones",
    "modalities",
    "data",
    "fusion",
    "tasks",
    "models",
    "objectives",
    "inference",
    "training",
    "trees",
    "evaluation",
    "trust",
    "runtime",
    "deploy",
    "fitting",
    "api",
    "estimators",
    "lifecycle",
    "samples",
    "testing",
    "cli",
    "__main__",
]

MAX_LINES, MAX_FUNCTION = 400, 60

FORBIDDEN_MODULES = {
    *("pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "imp", "tarfile", "xmlrpc", "pty"),
    *("torchvision", "torchaudio", "torchcodec"),
}
FORBIDDEN_CALLS = set(
    [
        "eval",
        "exec",
        "__import__",
        "os.system",
        "torch.load",
        "torch.save",
        "yaml.load",
        "yaml.full_load",
        "yaml.unsafe_load",
        "yaml.load_all",
        "pd.read_pickle",
        "pandas.read_pickle",
        "yaml.unsafe_load_all",
        "yaml.full_load_all",
        "yaml.safe_load",  # grows without measure: fusetune.security.yaml_text.parse_yaml
        "os.popen",
        "runpy.run_path",
        "torch.hub.load",
        "torch.jit.load",
        "torch.package.PackageImporter",
        "np.memmap",
    ]
)
FORBIDDEN_METHODS = {"extractall", "unpack_archive", "read_pickle", "to_pickle", "load_module", "apply_chat_template"}
"""Whatever they are called on."""
RENDERS_TEMPLATES = {"backbones/template_worker.py"}
"""The only module that renders a chat template: in a process with limits on time and memory."""
UNREAD = {"json.load", "np.load", "numpy.load", "np.loadtxt"}
"""Readers that take a file of any size and sort."""
READS_ITS_OWN = {"data/reading/readers.py"}
"""Modules that read back what this process has just written."""
WITHOUT_ASSERTIONS = {
    "security/untrusted.py",
    "security/yaml_text.py",
    "security/model_folder.py",
    "backbones/hub/source.py",
    "training/checkpoints/checkpoint.py",
}
"""Modules that keep strangers' files out: `python -O` takes assertions away, so they have none."""
FORBIDDEN_ARGUMENTS = {("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False), ("shell", True)}

IMPORT_NAMES = {
    "pyyaml": "yaml",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "faiss-cpu": "faiss",
    "mlflow-skinny": "mlflow",
}
QUICK = {"typer", "rich", "pydantic"}
"""The dependencies that `import fusetune` and `fusetune --help` may load; typer takes pydantic along."""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(parse(path)))


def layer(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> list[tuple[int, str]]:
    """(line, full name) of everything that a module imports; `from a import b` gives a.b."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: imports are absolute"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@cache
def only_for_types(path: Path) -> set[int]:
    """The lines inside `if TYPE_CHECKING:`."""
    blocks = [node for node in nodes(path) if isinstance(node, ast.If)]
    return {
        line
        for block in blocks
        if ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for line in range(block.lineno, (block.body[-1].end_lineno or block.lineno) + 1)
    }


def requirement_names(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=!~ ]", requirement)[0] for requirement in requirements}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    if path == SOURCE / "__init__.py":
        lines = only_for_types(path)
        assert all(line in lines or not name.startswith("fusetune") for line, name in imported(path))
        return
    own = layer(path)
    assert own in LAYERS, f"{own} has no place in DESIGN §1's list"
    types = only_for_types(path)  # naming a type makes nothing run
    wrong = [
        f"line {line}: {own} imports {name}"
        for line, name in imported(path)
        if name.startswith("fusetune.")
        and line not in types
        and name.split(".")[1] != own
        and name.split(".")[1] in LAYERS
        and LAYERS.index(name.split(".")[1]) > LAYERS.index(own)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= MAX_FUNCTION, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_unsafe_is_used(path):
    assert not {name.split(".")[0] for _, name in imported(path)} & FORBIDDEN_MODULES
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in FORBIDDEN_CALLS, f"line {node.lineno}: {called}"
        assert called.rpartition(".")[2] not in FORBIDDEN_METHODS, f"line {node.lineno}: {called}"
        assert called not in UNREAD or name_of(path) in READS_ITS_OWN, f"line {node.lineno}: {called}"
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Constant):
                pair = (keyword.arg, keyword.value.value)
                assert pair not in FORBIDDEN_ARGUMENTS, f"line {node.lineno}: {pair}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_chat_templates_are_rendered_in_the_sandbox_only(path):
    names = {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)}
    names |= {name.rpartition(".")[2] for _, name in imported(path)}
    assert "render_jinja_template" not in names or name_of(path) in RENDERS_TEMPLATES


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def private_names_of_ours() -> set[str]:
    """The names with one leading underscore that our own modules define."""
    names: set[str] = set()
    for path in MODULES:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    return {name for name in names if is_private(name)} | {"_private", "_optional"}


OURS = private_names_of_ours()


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "_private.py"], ids=name_of)
def test_private_names_of_other_libraries_are_in_one_module(path):
    """Each stands in fusetune._private, with a canary in tests/test_private.py."""
    for line, name in imported(path):
        root, *parts = name.split(".")
        foreign = root not in ("fusetune", "__future__") and any(map(is_private, parts))
        assert not foreign, f"line {line}: {name} is private"
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            assert not is_private(node.attr) or node.attr in OURS, f"line {node.lineno}: {ast.unparse(node)} is private"
            swapped = node.attr == "__class__" and isinstance(node.ctx, ast.Store)
            assert not swapped, f"line {node.lineno}: replace the object, not its class"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("getattr", "hasattr", "setattr", ".pop")):
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            wrong = [text for text in texts if is_private(text) and text not in OURS]
            assert not wrong, f"line {node.lineno}: {wrong} is private"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_check_of_what_came_hangs_on_an_assertion(path):
    """An assertion states what our own code made sure of; nothing catches one, and guards have none."""
    for node in nodes(path):
        assert not (isinstance(node, ast.Assert) and name_of(path) in WITHOUT_ASSERTIONS), f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            assert "AssertionError" not in ast.unparse(node.type), f"line {node.lineno}: AssertionError is caught"
        if isinstance(node, ast.Name):
            assert node.id != "__debug__", f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_are_declared(path):
    core = requirement_names(PROJECT["dependencies"]) | set(sys.stdlib_module_names) | {"fusetune", "pydantic_core"}
    types = only_for_types(path)
    optional = set(_optional.EXTRAS)
    for line, name in imported(path):
        package = name.split(".")[0]
        if package not in core:
            assert line in types, f"line {line}: {package} is no core dependency; take optional_import"
            assert package in optional, f"line {line}: {package} comes with no extra"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name_of)
def test_package_files_hold_nothing_heavy(path):
    """Importing one part must not import its neighbours."""
    lines = only_for_types(path)
    for line, name in imported(path):
        assert line in lines or name.split(".")[0] in sys.stdlib_module_names, f"line {line}: {name}"


def test_every_layer_of_the_list_is_in_order_once():
    assert len(LAYERS) == len(set(LAYERS))


def test_extras_exist():
    extras = PROJECT["optional-dependencies"]
    for module, extra in _optional.EXTRAS.items():
        assert module in requirement_names(extras[extra]), f"{module} is not brought by [{extra}]"


def test_constraints_name_every_dependency_and_torch_first():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[0] == "torch==2.13.0"
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+", pin) for pin in pins)
    needed = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    names = {re.split(r"[\[<>=!~ ]", requirement)[0] for requirement in needed} - {"fusetune"}
    assert {name.replace("_", "-") for name in names} <= {pin.split("==")[0] for pin in pins}


@pytest.mark.parametrize("table", [registry.MODALITIES, registry.FUSIONS, registry.TASKS], ids=lambda t: t.kind)
def test_registered_names_lead_to_classes(table):
    for name in table:
        module, _, attribute = table.table[name].partition(":")
        path = ROOT / "src" / (module.replace(".", "/") + ".py")
        classes = {node.name for node in parse(path).body if isinstance(node, ast.ClassDef)}
        assert attribute in classes, f"{name}: {module} has no class {attribute}"


@pytest.mark.parametrize(
    "code",
    [
        "import fusetune",
        "from fusetune.cli.main import app; app(['--help'], standalone_mode=False)",
        "from fusetune.cli.main import app; app(['fit', '--help'], standalone_mode=False)",
    ],
    ids=["import", "help", "fit-help"],
)
def test_starting_loads_nothing_heavy(code):
    ending = "\nimport sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    needed = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    assert "fusetune" in loaded
    assert loaded & requirement_names(needed) - QUICK - {"fusetune"} == set()


NAMED_CONSTRUCTORS = {
    ("fusetune.data.table", "fusetune.data.reading.readers"),  # Table.read
    ("fusetune.data.schema", "fusetune.data.detect.columns"),  # Schema.detect
}
"""A class may name, inside a function, the module that makes objects of it: there is no other way back."""


def _files_imported(path: Path) -> set[str]:
    """The modules of ours that a module imports, wherever in it, for types too."""
    known = {"fusetune." + name_of(module).removesuffix(".py").replace("/", ".") for module in MODULES}
    names = {name for _, name in imported(path)}
    own = "fusetune." + name_of(path).removesuffix(".py").replace("/", ".")
    files = {name if name in known else name.rpartition(".")[0] for name in names} & known
    return {other for other in files if (own, other) not in NAMED_CONSTRUCTORS}


def test_no_files_import_each_other_in_circles():
    """Wherever the import stands: inside a function or under TYPE_CHECKING it is a circle as well."""
    graph = {"fusetune." + name_of(p).removesuffix(".py").replace("/", "."): _files_imported(p) for p in MODULES}
    circles, done = [], set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circles.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())
    assert not circles, "\n".join(circles)
