"""Every module, read for what would run whatever it is given: the one place where a stranger's code could."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
FOREIGN = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle"}
# it tries whether an error of its own can go from one of its processes to another
# what goes between the processes of one cluster, which Ray pickles anyway (docs/scale.md)
OWN = {("backbones/prefetch.py", "import pickle"), ("selftrain/engine/on_ray.py", "import pickle")}
SWITCHES = {"shell", "trust_remote_code", "allow_pickle"}


def findings(file):
    """Line and words of everything in a file that runs what it reads."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for name in [module] if module else [one.name for one in node.names]:
                if name.split(".")[0] in FOREIGN:
                    yield node.lineno, f"import {name}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name in CALLS or (name == "torch.load" and given.get("weights_only") != "True"):
                yield node.lineno, name
            # anything but a plain False might become true
            yield from ((node.lineno, one) for one in SWITCHES & given.keys() if given[one] != "False")


def test_no_module_runs_what_it_reads():
    files = [
        file
        for room in ("agents", "backbones", "losses", "selftrain", "runs")
        for file in (CHECKOUT / room).rglob("*.py")
    ]
    assert len(files) > 200
    found = {(str(file.relative_to(CHECKOUT)), words) for file in files for _, words in findings(file)}
    assert found == OWN


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib", "eval(x)", "exec(x)", "os.system(x)",
        "torch.load(x)", "torch.load(x, weights_only=False)", "yaml.load(x)", "run(x, shell=True)",
        "from_pretrained(x, trust_remote_code=True)", "np.load(x, allow_pickle=asked)",
    ],
)  # fmt: skip
def test_it_is_found(source, tmp_path):
    (tmp_path / "module.py").write_text(source)
    assert len(list(findings(tmp_path / "module.py"))) == 1


def test_what_reads_and_no_more_is_let_be(tmp_path):
    lines = ("model.eval()", "re.compile(x)", "torch.load(x, weights_only=True)", "run(x, shell=False)")
    (tmp_path / "module.py").write_text("\n".join(lines))
    assert list(findings(tmp_path / "module.py")) == []
