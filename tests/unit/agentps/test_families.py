"""Every family, as tiny random models of the real classes: what it can do is the table of docs/agentps.md.

`python -m pytest tests/unit/agentps/test_families.py` compares the table with what is found here.
"""

from __future__ import annotations

import json
import re
import resource
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from agentps_helpers import WORDING, answering, moved
from mllm_families import FAMILIES, LIMITS, LOOSELY, WIDTH, Family, picture
from safetensors.torch import load_file, save_file

from backbones.errors import PromptFitError, WeightsError
from backbones.mllm.answering import checkpoint_blocks, merge, trained_names
from backbones.mllm.hub import _metadata, pictures_in
from backbones.mllm.load import load_mllm
from backbones.mllm.prompts import Prompt

DOCS = Path(__file__).parents[3] / "docs" / "agentps.md"
BUDGET = 256
NO_VIDEO = "no: its processor takes no videos"
CANNOT = {
    ("Gemma-3", "video"): NO_VIDEO,
    ("Mistral-3", "video"): NO_VIDEO,
    ("LLaVA-NeXT", "video"): NO_VIDEO,
    ("LFM2-VL", "video"): NO_VIDEO,
}
ALBUMS = [
    Prompt("a short one", [picture("red"), picture("green")]),
    Prompt("a much longer text, so that the batch is padded by a good many tokens"),
    Prompt("two pictures", [picture("blue"), picture("green")]),
    Prompt("one picture", [picture("blue")]),
]


def final(model, reader, prompts):
    with torch.no_grad():
        return model(reader.read(prompts))[-1]


def gradients(model, inputs):
    model.zero_grad()
    sum(one.pow(2).sum() for one in model(inputs)).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


# ---- the columns of the table ---------------------------------------------------------------------------


def pictures(family: Family) -> None:
    model, reader = answering(family.base(), budget=BUDGET)
    red, blue = (final(model, reader, [Prompt("same words", [picture(c)])]) for c in ("red", "blue"))
    assert (red - blue).abs().max() > 1e-5


def albums(family: Family) -> None:
    """Two posts of pictures beside one without; order counts."""
    model, reader = answering(family.base(), budget=BUDGET)
    inputs = reader.read(ALBUMS)
    assert pictures_in(inputs) >= 5
    shown = [[picture(c) for c in colors] for colors in (("red", "blue"), ("blue", "red"), ("red", "green"))]
    found = final(model, reader, [Prompt("same words", album) for album in shown])
    assert (found[0] - found[1]).abs().max() > 1e-6
    assert (found[0] - found[2]).abs().max() > 1e-6


def video(family: Family) -> None:
    """Sixteen frames and no frame less: each one that is changed changes the answer; one is a video too."""
    model, reader = answering(family.base(album="video"), budget=BUDGET)
    frames = [picture("red")] * 16
    changed = [[*frames[:place], picture("blue"), *frames[place + 1 :]] for place in (0, 7, 15)]
    found = final(model, reader, [Prompt("same words", one) for one in (frames, *changed)])
    assert ((found[1:] - found[0]).abs().amax(1) > 1e-7).all()
    assert final(model, reader, [Prompt("no frames"), Prompt("some", frames)]).isfinite().all()
    alone = final(model, reader, [Prompt("same words", one[:1]) for one in changed[:2]])
    assert (alone[0] - alone[1]).abs().max() > 1e-7


def padding_and_batches(family: Family) -> None:
    """Either side is padded, and a post is answered as if it were alone; no chat begins twice."""
    base = family.base()
    model, left = answering(base, budget=BUDGET)
    moved(model)
    inputs = left.read(ALBUMS)
    begins = base.tokenizer.bos_token_id
    assert ((inputs["input_ids"] == begins).sum(1) <= 1).all()
    together, other = final(model, left, ALBUMS), final(model, base.reader(WORDING, "right", BUDGET), ALBUMS)
    alone = torch.cat([final(model, left, [one]) for one in ALBUMS])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(together, other, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def trained_by_gradients(family: Family) -> None:
    model, reader = answering(family.base(), budget=BUDGET)
    found = gradients(moved(model).train(), reader.read(ALBUMS))
    assert found.keys() == set(trained_names(model))
    assert all(one.isfinite().all() and one.abs().sum() > 0 for one in found.values())


def checkpointing(family: Family) -> None:
    """The language model is computed again in the backward pass, a frozen tower is not."""
    base = family.base()
    model, reader = answering(base, budget=BUDGET)
    inputs = reader.read(ALBUMS)
    computed = Counter[str]()
    for name, one in (("language", base.language_layers[0]), ("tower", base.vision_layers[0])):
        layer = base.module.get_submodule(one)
        layer.register_forward_pre_hook(lambda *_, name=name: computed.update([name]))
    before = gradients(moved(model).train(), inputs)
    checkpoint_blocks(base.module)
    once = dict(computed)
    after = gradients(model, inputs)
    assert computed == {"language": 3 * once["language"], "tower": 2 * once["tower"]}
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)


def half_precision(family: Family, another: Family) -> None:
    """A checkpoint in float16 is held in bfloat16; answers are about those of float32."""
    exact = final(*answering(family.base(), budget=BUDGET), ALBUMS)
    halved = Family(another.whole.to(torch.float16), another.processor).base()
    assert {one.dtype for one in halved.module.parameters()} == {torch.bfloat16}
    model, reader = answering(halved, budget=BUDGET)
    precise = final(model, reader, ALBUMS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = final(model, reader, ALBUMS)
        found = gradients(model, reader.read(ALBUMS))
    assert (precise - exact).abs().max() < 0.05
    assert (mixed - exact).abs().max() < 0.05
    assert all(one.dtype == torch.float32 and one.isfinite().all() for one in found.values())


def adapters(family: Family, another: Family) -> None:
    """On every linear layer of the language model and on none of the tower, unless that is asked for."""
    base = family.base()
    assert len(base.language_layers) >= 12  # two blocks of attention and a network of three layers
    names = [name for name in trained_names(answering(base, budget=BUDGET)[0]) if "lora_A" in name]
    assert len(names) == len(base.language_layers)
    base = another.base()
    model, reader = answering(base, budget=BUDGET, vision=True)
    found = gradients(moved(model), reader.read(ALBUMS))
    made = [n for n in trained_names(model) if any(f".{layer}.lora_A" in n for layer in base.vision_layers)]
    assert len(made) == len(base.vision_layers) > 0
    # LLaVA-NeXT reads its tower before the last layer: what is learned there has no gradient
    assert sum(bool(found[name].any()) for name in made if name in found) >= len(made) // 2


def merged_saved_and_loaded(family: Family, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = family.base()
    model, reader = answering(base, budget=BUDGET)
    before = final(moved(model), reader, ALBUMS)
    model.language = merge(model.language)
    base.write(model.language, folder)
    reader.save(folder)
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    fresh = Family(whole, AutoProcessor.from_pretrained(folder)).base()
    model.language = fresh.module
    assert torch.allclose(before, final(model, fresh.reader(WORDING, "left", BUDGET), ALBUMS), atol=1e-4)


CHECKS = {
    "pictures": pictures,
    "albums": albums,
    "video": video,
    "padding, batches": padding_and_batches,
    "gradients": trained_by_gradients,
    "checkpointing": checkpointing,
    "bf16": half_precision,
    "adapters": adapters,
    "merge, save, load": merged_saved_and_loaded,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_family_does_what_the_table_says(name, check, tmp_path):
    more = (tmp_path,) if check == "merge, save, load" else ()
    if check in ("bf16", "adapters"):
        more = (FAMILIES[name](),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if CANNOT.get((name, check)) == NO_VIDEO:
            with pytest.raises(PromptFitError, match="takes no videos"):
                CHECKS[check](FAMILIES[name](), *more)
        else:
            CHECKS[check](FAMILIES[name](), *more)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_tokens_row_alone_gives_the_numbers_of_pefts_table(name):
    found = []
    for lean in (False, True):
        model, reader = answering(FAMILIES[name]().base(), budget=BUDGET, lean=lean)
        inputs = reader.read(ALBUMS)
        logits = [one.detach() for one in moved(model).train()(inputs)]
        found.append((logits, gradients(model, inputs)))
    (logits, before), (lean_logits, after) = found
    assert all(torch.equal(one, other) for one, other in zip(logits, lean_logits, strict=True))
    assert before.keys() == after.keys()
    assert all(torch.equal(one, after[name]) for name, one in before.items())


# ---- pictures that are lost on the way ------------------------------------------------------------------


def cutting(name: str) -> Family:
    """The family, cutting pictures into tiles where it can, as hubs' processors do."""
    family = FAMILIES[name]()
    if name == "LFM2-VL":
        family.processor.image_processor.do_image_splitting = True
    return family


def processing(monkeypatch, family: Family, change) -> None:
    """Let a processor be called as `change` calls it where several posts are read."""
    kind = type(family.processor)
    call = kind.__call__

    def changed(self, **kinds):
        return call(self, **kinds) if len(kinds["text"]) == 1 else change(self, call, kinds)

    monkeypatch.setattr(kind, "__call__", changed)


# some families cut the wide one into three tiles, as many as there are pictures
WIDE = [
    Prompt("two", [picture("blue", (20, 20)), picture("red", (200, 60))]),
    Prompt("one", [picture("green", (20, 20))]),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_lost_beside_one_in_many_tiles_is_found(name, monkeypatch):
    family = cutting(name)
    reader = family.base().reader(WORDING, "left", BUDGET)
    assert reader.read(WIDE)["input_ids"].shape[0] == 2

    def lose(processor, call, kinds):
        [_, wide], other = kinds["images"]
        texts = [kinds["text"][0].replace(processor.image_token, "", 1), *kinds["text"][1:]]
        return call(processor, **kinds | {"images": [[wide], other], "text": texts})

    processing(monkeypatch, family, lose)
    with pytest.raises(PromptFitError, match=r"3 pictures were given and [12] came back as pixels"):
        reader.read(WIDE)


@pytest.mark.parametrize("name", ["InternVL3", "LFM2-VL", "SmolVLM2", "Gemma-3"])
def test_a_tile_whose_pixels_are_lost_is_found(name, monkeypatch):
    family = cutting(name)
    reader = family.base().reader(WORDING, "left", BUDGET)

    def lose(processor, call, kinds):
        batch = call(processor, **kinds)
        for pixels in ("pixel_values", "pixel_attention_mask", "spatial_shapes"):
            if pixels in batch:
                batch[pixels] = batch[pixels][:, :-1] if name == "SmolVLM2" else batch[pixels][:-1]
        return batch

    processing(monkeypatch, family, lose)
    with pytest.raises(PromptFitError, match=r"3 pictures were given and [12] came back as pixels"):
        reader.read(WIDE)


@pytest.mark.parametrize("videos", [1, 2], ids=["one of two", "both"])
@pytest.mark.parametrize("name", [one for one in FAMILIES if (one, "video") not in CANNOT])
def test_a_frame_that_a_video_lost_is_found(name, videos, monkeypatch):
    """Five frames a video: some families fill them up to six."""
    family = FAMILIES[name]()
    reader = family.base(album="video").reader(WORDING, "left", BUDGET)
    shown = [Prompt("x", [picture(color)] * 5) for color in ("red", "blue")]
    assert reader.read(shown)["input_ids"].shape[0] == 2

    def lose(processor, call, kinds):
        found = [one[:4] if i < videos else one for i, one in enumerate(kinds["videos"])]
        told = kinds["videos_kwargs"] | {"video_metadata": [*map(_metadata, found)]}
        return call(processor, **kinds | {"videos": found, "videos_kwargs": told})

    processing(monkeypatch, family, lose)
    with pytest.raises(
        PromptFitError, match=r"10 pictures were given and [89] came back|cannot read 2 posts"
    ):
        reader.read(shown)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_computes_attention_product_by_product(name):
    configs = [getattr(one, "config", None) for one in FAMILIES[name]().whole.modules()]
    kinds = {one._attn_implementation for one in configs if hasattr(one, "_attn_implementation")}
    assert kinds == {"sdpa"}


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_that_are_not_whole_are_refused(name, tmp_path):
    family = FAMILIES[name]()
    family.whole.save_pretrained(tmp_path)
    family.processor.save_pretrained(tmp_path)
    assert load_mllm(str(tmp_path)).width == WIDTH
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(one for one in sorted(tensors) if "proj" in one)
    cut = {lost: tensors.pop(lost)[:1].clone()}
    name = re.escape(lost.rpartition("layers.")[2])  # the file has other names for what comes before
    for left in (tensors, tensors | cut):
        save_file(left, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(WeightsError, match=f"1 of its tensors .*{name} first"):
            load_mllm(str(tmp_path))


LARGER = {
    "layers": (r"_layers\Z|\Adepth\Z", 10**9, "config.json says .*1,000,000,000, and its files hold"),
    "words": (r"\Avocab_size\Z", 10**9, "million numbers, and its weights take"),
    "places": (r"\A(hidden|intermediate)_size\Z", 2**20, "million numbers, and its weights take"),
}


@pytest.mark.attack("models: larger than their files")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("what", LARGER)
def test_a_configuration_that_says_much_more_than_the_weights_is_refused(name, what, tmp_path):
    keys, value, told = LARGER[what]
    family = FAMILIES[name]()
    family.whole.save_pretrained(tmp_path)
    family.processor.save_pretrained(tmp_path)

    def larger(said):
        return {
            key: larger(one) if isinstance(one, dict) else value if re.search(keys, key) else one
            for key, one in said.items()
        }

    file = tmp_path / "config.json"
    file.write_text(json.dumps(larger(json.loads(file.read_text()))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=told):
        load_mllm(str(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


@pytest.mark.parametrize(
    "content",
    ['{"a": ' + "[" * 500_000 + "]" * 500_000 + "}", "[]", "{", "\0", ""],
    ids=["brackets", "list", "cut", "nul", "empty"],
)
@pytest.mark.parametrize("file", ["config", "processor_config", "tokenizer", "tokenizer_config"])
def test_a_file_that_is_none_of_transformers_is_an_error_with_its_model(file, content, tmp_path):
    family = next(iter(FAMILIES.values()))()
    family.whole.save_pretrained(tmp_path)
    family.processor.save_pretrained(tmp_path)
    file = tmp_path / f"{file}.json"
    assert file.exists()
    file.write_text(content)
    with pytest.raises(WeightsError, match=f"{re.escape(str(tmp_path))} could not be loaded"):
        load_mllm(str(tmp_path))


def test_the_table_in_docs_is_the_one_that_is_tested():
    # the last column is tests/vllm's
    lines = [f"| family | {' | '.join(CHECKS)} | in vLLM |", "|---" * (len(CHECKS) + 2) + "|"]
    for name in FAMILIES:
        cells = [CANNOT.get((name, check), "yes") for check in CHECKS]
        served = (LIMITS | LOOSELY).get(name, ("yes",))[0]
        lines.append(f"| {' | '.join([name, *cells, served])} |")
    assert "\n".join(lines) in DOCS.read_text(encoding="utf-8")
