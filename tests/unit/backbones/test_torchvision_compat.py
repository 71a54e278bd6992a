"""torchvision is mended only when it needs it, and other failures are told apart."""

import subprocess
import sys
from pathlib import Path

import pytest

from backbones import torchvision_compat
from backbones.errors import TorchvisionError


def python(code):
    words, checkout = [sys.executable, "-c", code], Path(__file__).parents[3]
    return subprocess.run(words, capture_output=True, text=True, cwd=checkout, check=False)


@pytest.mark.parametrize("first", ["", "try: import torchvision\nexcept Exception: pass\n"])
def test_it_imports_in_a_fresh_process_twice_and_after_a_failed_import(first):
    code = first + (
        "from backbones.torchvision_compat import ensure_torchvision as e; e(); e()\n"
        "import torch; from torchvision.transforms import functional as F\n"
        "print(tuple(F.resize(torch.zeros(3, 8, 8), [4, 4]).shape))"
    )
    done = python(code)
    assert done.stdout.strip() == "(3, 4, 4)", done.stderr


@pytest.mark.parametrize("failure", [ImportError("No module named 'torchvision'"), RuntimeError("else")])
def test_other_failures_are_not_mended(monkeypatch, failure):
    def fail(name):
        raise failure

    monkeypatch.setattr(torchvision_compat.importlib, "import_module", fail)
    with pytest.raises(TorchvisionError, match="Reinstall the two together") as caught:
        torchvision_compat.ensure_torchvision()
    assert caught.value.__cause__ is failure


def test_light_modules_do_not_import_torch():
    code = (
        "import sys, backbones, backbones.base, backbones.images, backbones.errors, selftrain.data.features\n"
        "print([name for name in ('torch', 'transformers', 'torchvision') if name in sys.modules])"
    )
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr
