"""Every model family that AgentPS is said to work with: the real classes of transformers, random and tiny."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from backbones.mllm.base import Mllm
from backbones.mllm.hub import from_parts
from backbones.torchvision_compat import ensure_torchvision

ensure_torchvision()

WIDTH = 64
ROWS = 640  # of every table of embeddings: more than there are tokens, as hubs save them
_TEXT = {
    "vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_SIGLIP = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_SIZE = {"height": 28, "width": 28}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 4, 8]}
_WORDS = (
    "Post: a short one. Is there a face? Is it a joke? Is it harmful? much longer text awful lovely day"
    " Is there an insult? What is the tone? Is this post rude: insults somebody? user assistant two pictures"
)


class Family(NamedTuple):
    """A model of transformers and its processor, as a hub would give them."""

    whole: Any
    processor: Any

    def base(self, name: str = "tiny", **kinds: Any) -> Mllm:
        """Return it as AgentPS takes it; both parts are changed."""
        return from_parts(name, self.whole, self.processor, **kinds)


# ---- tokenizers and chats -------------------------------------------------------------------------------


@cache
def _byte_pairs() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [_WORDS] * 3,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet,
            show_progress=False,
        ),
    )  # fmt: skip
    return tokenizer


def tokenizer_of(named: dict[str, str], *more: str, bos: bool = False) -> Any:
    """Return a byte-level tokenizer with special tokens, some of which a processor asks for by name.

    Args:
        named: Attribute -> token.
        more: Further special tokens.
        bos: Begin every text with `<s>`, as the tokenizers of Llama, Gemma, Mistral and LFM2 do.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    kinds = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    made = deepcopy(_byte_pairs())
    if bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found = PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=named, **kinds)
    found.add_tokens([*named.values(), *more, "<|im_start|>", "<|im_end|>"], special_tokens=True)
    return found


def chat(image: str, video: str = "<video>", begin: str = "") -> str:
    """Return a chat template: what stands for a picture, for a video, and before everything."""
    return (
        begin + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% elif part['type'] == 'video' %}" + video + "{% else %}" + image + "{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


# ---- the families ---------------------------------------------------------------------------------------


def _made(kind: type, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        for one in model.parameters():  # some layers begin as zeros, and would hide what they are given
            if not one.any():
                torch.nn.init.normal_(one, std=0.02)
    return model


def llava_onevision() -> Family:
    import transformers as hf

    tokens = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = tokenizer_of(tokens)
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_SIGLIP, vision_use_head=False),
        text_config=hf.Qwen2Config(**_TEXT), image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id, image_grid_pinpoints=pinpoints,
        vision_feature_select_strategy="full", vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=_SIZE, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer, video_processor=hf.LlavaOnevisionVideoProcessor(size=_SIZE), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=chat("<image>"),
    )  # fmt: skip
    return Family(_made(hf.LlavaOnevisionForConditionalGeneration, config), processor)


_QWEN = {
    "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
}  # fmt: skip
_QWEN_CHAT = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": tokenizer.image_token_id, "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.vision_start_token_id,
        "vision_end_token_id": tokenizer.vision_end_token_id,
    }  # fmt: skip


def qwen25_vl() -> Family:
    import transformers as hf

    tokenizer = tokenizer_of(_QWEN)
    vision = {
        "depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "patch_size": 14,
        "out_hidden_size": WIDTH, "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    text = _TEXT | {"rope_parameters": _MROPE, "tie_word_embeddings": True}
    config = hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **_qwen_ids(tokenizer)
    )
    size = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**size), tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(**size), chat_template=chat(*_QWEN_CHAT),
    )  # fmt: skip
    return Family(_made(hf.Qwen2_5_VLForConditionalGeneration, config), processor)


def _qwen3_processor(tokenizer: Any) -> Any:
    import transformers as hf

    size = {"size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}}
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=16, **size), tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(size={"shortest_edge": 1024, "longest_edge": 64 * 1024}),
        chat_template=chat(_QWEN_CHAT[0], "<|video_pad|>"),
    )  # fmt: skip


_QWEN3_VISION = {
    "depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "patch_size": 16,
    "out_hidden_size": WIDTH, "num_position_embeddings": 16,
}  # fmt: skip


def qwen3_vl() -> Family:
    import transformers as hf

    tokenizer = tokenizer_of(_QWEN)
    config = hf.Qwen3VLConfig(
        text_config=_TEXT | {"head_dim": 32, "rope_parameters": _MROPE | {"mrope_interleaved": True}},
        vision_config=_QWEN3_VISION | {"deepstack_visual_indexes": [0]}, tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return Family(_made(hf.Qwen3VLForConditionalGeneration, config), _qwen3_processor(tokenizer))


def qwen35() -> Family:
    import transformers as hf

    tokenizer = tokenizer_of(_QWEN)
    linear = {
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    rope = _MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
    config = hf.Qwen3_5Config(
        text_config=_TEXT | linear | {"head_dim": 32, "rope_parameters": rope},
        vision_config=_QWEN3_VISION, tie_word_embeddings=True, **_qwen_ids(tokenizer),
    )  # fmt: skip
    return Family(_made(hf.Qwen3_5ForConditionalGeneration, config), _qwen3_processor(tokenizer))


def internvl3() -> Family:
    import transformers as hf

    tokens = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = tokenizer_of(tokens)
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [28, 28], "patch_size": [14, 14],
    }  # fmt: skip
    config = hf.InternVLConfig(
        vision_config=vision, text_config=hf.Qwen2Config(**_TEXT),
        image_token_id=tokenizer.context_image_token_id, image_seq_length=1,
    )  # fmt: skip
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=_SIZE, max_patches=2), tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=_SIZE), image_seq_length=1,
        chat_template=chat("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    return Family(_made(hf.InternVLForConditionalGeneration, config), processor)


def gemma3() -> Family:
    import transformers as hf

    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft>"}
    tokenizer = tokenizer_of(tokens, bos=True)
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # as its own one has; vLLM looks them up
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(
            **_TEXT, head_dim=32, query_pre_attn_scalar=8, sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=hf.SiglipVisionConfig(**_SIGLIP, vision_use_head=False), mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size=_SIZE), tokenizer=tokenizer, image_seq_length=4,
        chat_template=chat("<start_of_image>", begin="{{ bos_token }}"),
    )  # fmt: skip
    return Family(_made(hf.Gemma3ForConditionalGeneration, config), processor)


def mistral3() -> Family:
    import transformers as hf

    tokenizer = tokenizer_of({"image_token": "[IMG]"}, "[IMG_BREAK]", "[IMG_END]", bos=True)
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14, "head_dim": 32,
    }  # fmt: skip
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**vision), text_config=hf.MistralConfig(**_TEXT, head_dim=32),
        image_token_index=tokenizer.image_token_id, spatial_merge_size=2,
    )  # fmt: skip
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14),
        tokenizer=tokenizer, patch_size=14, spatial_merge_size=2,
        chat_template=chat("[IMG]", begin="{{ bos_token }}"),
    )  # fmt: skip
    return Family(_made(hf.Mistral3ForConditionalGeneration, config), processor)


def llava_next() -> Family:
    import transformers as hf

    tokenizer = tokenizer_of({"image_token": "<image>"}, bos=True)
    pinpoints = [[28, 56], [56, 28]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_SIGLIP), text_config=hf.MistralConfig(**_TEXT, head_dim=32),
        image_token_index=tokenizer.image_token_id, image_grid_pinpoints=pinpoints, image_seq_length=4,
    )  # fmt: skip
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size=_SIZE, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=chat("<image>\n"),
    )  # fmt: skip
    return Family(_made(hf.LlavaNextForConditionalGeneration, config), processor)


def lfm2_vl() -> Family:
    import transformers as hf

    tokens = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    tokenizer = tokenizer_of(tokens, bos=True)
    kinds = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 32}
    # widths that transformers asks for no more; they stand in hubs' files, and vLLM reads them
    text = hf.Lfm2Config(**_TEXT, **kinds, conv_dim=WIDTH, block_dim=WIDTH)
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 14, "num_patches": 16, "vision_use_head": False,
    }  # fmt: skip
    config = hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(**vision), text_config=text,
        image_token_id=tokenizer.image_token_id, projector_hidden_size=WIDTH,
    )  # fmt: skip
    processor = hf.Lfm2VlProcessor(
        image_processor=hf.Lfm2VlImageProcessor(
            encoder_patch_size=14, tile_size=56, min_image_tokens=1, max_image_tokens=4, max_num_patches=16,
            do_image_splitting=False,
        ),
        tokenizer=tokenizer, chat_template=chat("<image>", begin="{{ bos_token }}"),
    )  # fmt: skip
    return Family(_made(hf.Lfm2VlForConditionalGeneration, config), processor)


def smolvlm2() -> Family:
    import transformers as hf

    tokens = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = tokenizer_of(tokens, *(f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)))
    vision = {key: value for key, value in _SIGLIP.items() if key != "image_size"} | {"image_size": 56}
    config = hf.SmolVLMConfig(
        vision_config=vision, text_config=hf.LlamaConfig(**_TEXT), image_token_id=tokenizer.image_token_id,
        scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    size = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**size), tokenizer=tokenizer,
        video_processor=hf.SmolVLMVideoProcessor(**size), image_seq_len=4,
        chat_template=chat("<image>"),
    )  # fmt: skip
    return Family(_made(hf.SmolVLMForConditionalGeneration, config), processor)


def picture(color: str, size: tuple[int, int] = (90, 60)) -> Image.Image:
    return Image.new("RGB", size, color)


FAMILIES: dict[str, Callable[[], Family]] = {
    "LLaVA-OneVision": llava_onevision,
    "Qwen2.5-VL": qwen25_vl,
    "Qwen3-VL": qwen3_vl,
    "Qwen3.5": qwen35,
    "InternVL3": internvl3,
    "Gemma-3": gemma3,
    "Mistral-3": mistral3,
    "LLaVA-NeXT": llava_next,
    "LFM2-VL": lfm2_vl,
    "SmolVLM2": smolvlm2,
}
LIMITS = {
    "LLaVA-OneVision": (
        "albums as a video; as images one picture a post: of more it cuts each into tiles, training does not",
        "of a post with 2 pictures the server makes .* leave --server out",
    ),
    "Gemma-3": (
        "no: on a CPU the tokens of a picture see only those before them",
        "each token sees those after it, too",
    ),
    "LFM2-VL": ("no: on a CPU its states are others, of words too", "an LFM2-VL, of which vLLM"),
}
"""Family -> what vLLM cannot, as the table says it; and the error."""
LOOSELY = {
    "Qwen3.5": ("in bfloat16, within 5e-4: on a CPU its linear attention wants that", "bfloat16", 5e-4)
}
"""Family -> how its states come near, as the table says it; in what vLLM computes, and within what."""


def as_from_a_hub(family: Family, folder: Path) -> Family:
    """Return it as loaded from files, whose names for the layers of CLIP and SigLIP are those of hubs.

    transformers gives them names of its own, and writes the hubs' ones again where it has read them.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText

    family.whole.save_pretrained(folder)
    if type(getattr(family.whole.base_model, "vision_tower", None)).__name__.startswith(("CLIP", "Siglip")):
        file = folder / "model.safetensors"
        tensors = {
            re.sub(r"\bvision_tower\.", "vision_tower.vision_model.", name): one
            for name, one in load_file(file).items()
        }
        save_file(tensors, file, {"format": "pt"})
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    return Family(whole, family.processor)
