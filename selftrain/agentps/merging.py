"""A whole checkpoint of a trained model: adapters multiplied into the base, heads and tokenizer beside it.

The language part is one that transformers and vLLM load by themselves; answer_heads/ holds what they do not
know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbones.mllm.adapters import merge
from selftrain.agentps.folder import TASK, Loaded
from selftrain.data.task import dump_task
from selftrain.errors import ModelError
from selftrain.store import atomic

MERGED = "agentps-merged.json"
# a folder of its own: vLLM takes every .safetensors beside the configuration for the model's
HEADS = "answer_heads/model.safetensors"


def merge_into(loaded: Loaded, out: Path) -> None:
    """Write the checkpoint; `loaded` keeps its weights but loses its adapters.

    Raises:
        ModelError: `out` holds something already.
        StorageError: The disk is full or refuses.
    """
    from safetensors.torch import save_file

    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: give --merge a folder of its own")
    out.mkdir(parents=True, exist_ok=True)
    built = loaded.built
    try:
        module = merge(built.model.language)
        built.model.language = module
        built.base.write(module, out)
        built.collator.reader.save(out)
        heads = {name: one.detach().contiguous() for name, one in built.model.heads.state_dict().items()}
        with atomic.replacing(out / HEADS) as part:
            save_file(heads, part, metadata={"format": "pt"})
    except OSError as error:
        raise atomic.storage_error(out, None, error) from error
    dump_task(loaded.task, out / TASK)
    merged: dict[str, Any] = {"merged": True, "answer_id": built.model.answer_id}
    atomic.write_json(out / MERGED, loaded.about | merged)
