"""The sources themselves: nothing that runs what it reads. Found in the syntax trees, so comments and strings do not count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "ov2_core", "pipelines", "jobs", "infra")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
}
SAFE_OPTIONS = {"trust_remote_code": "False", "allow_pickle": "False", "shell": "False", "weights_only": "True"}
ALLOWED = {
    "ov2_core/build_kernels.py": {"exec"},
    "pipelines/runtime.py": {"cloudpickle", "pickle", "pickle.loads", "cloudpickle.dumps", "pickle.PicklingError"},
    "ov2_core/train/checkpoint_reader.py": {"pickle", "pickle.Unpickler", "pickle.UnpicklingError"},
}
"""A function with the argument names of a kernel of ours; the job that a driver sends its own workers, as Ray sends
everything; and an Unpickler that lets a list of classes in."""


def dotted(node: ast.expr) -> str:
    """a.b.c of a name; what is no name counts as an empty one."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(text: str, *, name: str = "x.py") -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name.partition(".")[0] for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules.append((node.module or "").partition(".")[0])
            for module in FORBIDDEN_MODULES.intersection(modules) - ALLOWED.get(name, set()):
                yield f"{where}: imports {module}"
        named = (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in FORBIDDEN_MODULES
        )
        used = ast.unparse(node) if named else ""
        if named and used not in ALLOWED.get(name, set()):
            yield f"{where}: uses {used}"
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in SAFE_OPTIONS}
        if called in FORBIDDEN_CALLS - ALLOWED.get(name, set()):
            yield f"{where}: calls {called}"
        if called.endswith("torch.load") and options.get("weights_only") != "True":
            yield f"{where}: torch.load without weights_only=True"
        for option, safe in (
            ("trust_remote_code", "False"),
            ("allow_pickle", "False"),
            ("shell", "False"),
            ("weights_only", "True"),
        ):
            if options.get(option, safe) != safe:
                yield f"{where}: {option}={options[option]}"
        if called.endswith(("extractall", "tar.extract", "tarfile.extract")):
            yield f"{where}: {called} writes names from an archive"


def test_no_source_runs_what_it_reads() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    found = [f for path in files for f in findings(path.read_text(), name=path.relative_to(ROOT).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "def f():\n    import joblib.numpy_pickle",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=flag)",
        "np.load(p, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
        "yaml.load(x)",
        "tar.extractall(x)",
    ],
)
def test_the_search_finds_each_kind(text: str) -> None:
    assert list(findings(text))


def test_the_search_lets_safe_calls_pass() -> None:
    text = "torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\nmodel.eval()\nyaml.safe_load(x)\n# import pickle\n"
    assert not list(findings(text))
