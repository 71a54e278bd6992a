"""Any model that transformers loads as image-text-to-text: LLaVA-OneVision, Qwen2.5-VL and their kin.

The family's own processor lays out the chat and expands the images; the hidden states are those of the model
below the vocabulary's layer, which is not computed.

Shape legend: ``B`` prompts, ``L`` tokens, ``M`` images, ``D`` width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import nn

from backbones.errors import PromptFitError, WeightsError
from backbones.loading import quiet_loading
from backbones.mllm.base import Mllm, Padding, linear_layers
from backbones.mllm.prompts import ONE_TURN, Inputs, Prompt, Turns, Wording, Words, add_answer_token
from backbones.towers import PROBES, ModuleDigest

Album = Literal["images", "video"]
_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")
_LANGUAGE = ("language_model", "text_model")
_ONE_A_PICTURE = ("image_grid_thw", "image_sizes")  # what some processors give of every picture, once


class HubReader:
    """Prompts through the processor of a model; a `Reader` of `max_tokens`, images aside.

    An `album` of several pictures is given as images or as frames of one video, which costs far fewer tokens
    a picture (LLaVA-OneVision: 196 instead of 730). `first_token` says whether the tokenizer writes it.

    Raises:
        PromptFitError: The words leave no room for a post, there is no chat template, or an album is to be a
            video and the processor takes none.
    """

    def __init__(
        self,
        processor: Any,  # noqa: ANN401
        wording: Wording,
        padding: Padding,
        max_tokens: int,
        album: Album = "images",
    ) -> None:
        self._processor, self._padding, self._album = processor, padding, album
        tokenizer = processor.tokenizer
        if album == "video" and getattr(processor, "video_processor", None) is None:
            raise PromptFitError(
                f"{type(processor).__name__} takes no videos: of an album given as one, 0 pictures would come"
                ' to the model. Set model.album = "images"'
            )
        bare = self._chat("", 0)
        # chat templates that write the first token themselves would get a second one from the tokenizer
        self.first_token = not (tokenizer.bos_token and bare.startswith(tokenizer.bos_token))
        marks = len(tokenizer(bare, add_special_tokens=self.first_token)["input_ids"])
        turns = self._turns() if wording.rounds else ONE_TURN
        self.words = Words(tokenizer, wording, max_tokens, marks, turns)
        self._tokens: dict[int, int] = {0: 0}  # pictures of a post -> what they take
        # pictures of a video, or one; width and height -> what each of them takes
        self._taken: dict[tuple[int, tuple[int, int]], _Taken] = {}

    def length(self, text: str, images: int) -> int:
        """Return the tokens of a prompt, its pictures' as the first post read of as many had them."""
        return self.words.length(text) + self._tokens.get(images, images * 256)

    def read(self, prompts: Sequence[Prompt]) -> Inputs:
        texts = [self._chat(self.words.around(one.text), len(one.images)) for one in prompts]
        albums = [list(one.images) for one in prompts]
        inputs = self._processed(texts, albums)
        self.words.check(inputs)
        self._check_pictures(albums, texts, inputs)
        for one, mask in zip(prompts, inputs["attention_mask"], strict=True):
            if len(one.images) not in self._tokens:
                self._tokens[len(one.images)] = int(mask.sum()) - self.words.length(one.text)
        return inputs

    def save(self, folder: Path) -> None:
        self._processor.save_pretrained(folder)

    def _processed(self, texts: Sequence[str], albums: Sequence[list[Any]]) -> Inputs:
        media: dict[str, Any] = {}
        if any(albums) and self._album == "images":
            # one list a post, an empty one too: pictures in one flat list are taken for posts of one picture
            media = {"images": albums}
        elif any(albums):
            least = getattr(self._processor.video_processor, "temporal_patch_size", 1)
            videos = [_frames(album, least) for album in albums if album]
            # the frames were chosen before; a processor that samples again would keep a few of them
            media = {
                "videos": videos,
                "videos_kwargs": {"do_sample_frames": False, "video_metadata": [*map(_metadata, videos)]},
            }
        try:
            batch = self._processor(
                text=texts, **media, padding=True, padding_side=self._padding, return_tensors="pt",
                add_special_tokens=self.first_token,
            )  # fmt: skip
        except (ValueError, ImportError) as error:
            raise PromptFitError(
                f"{type(self._processor).__name__} cannot read {len(texts)} posts with"
                f" {sum(map(len, albums))} pictures: {error}"
            ) from error
        return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}

    def _chat(self, words: str, images: int) -> str:
        kinds = ["image"] * images if self._album == "images" else ["video"] * bool(images)
        content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": words}]
        return self._laid_out([{"role": "user", "content": content}])

    def _turns(self) -> Turns:
        """Return what the chat template writes between a user's words, the assistant's and a user's again."""
        said = ("question one", "answer one", "question two")
        chat = [
            {"role": role, "content": [{"type": "text", "text": words}]}
            for role, words in zip(("user", "assistant", "user"), said, strict=True)
        ]
        first, answer, second = said
        rest = self._laid_out(chat).partition(first)[2]
        before, found, rest = rest.partition(answer)
        after, again, _ = rest.partition(second)
        if not (found and again):
            raise PromptFitError(
                "the model's chat template does not show an answer of the assistant between two turns of the"
                " user: leave model.rounds out"
            )
        return Turns(before, after)

    def _laid_out(self, chat: list[dict[str, Any]]) -> str:
        try:
            text = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except (ValueError, AttributeError) as error:
            raise PromptFitError(
                f"the model's processor cannot lay out a chat ({error}): expected one with a chat template"
            ) from error
        return str(text)

    def _check_pictures(self, albums: Sequence[list[Any]], texts: Sequence[str], inputs: Inputs) -> None:
        """Compare the pictures given with the places in the chats and with the pixels that came back.

        Where some have none, the model would answer as if they were not there.
        """
        video = self._album == "video"
        token = getattr(self._processor, "video_token" if video else "image_token", None)
        for album, text in zip(albums, texts, strict=True):
            wanted = min(len(album), 1) if video else len(album)
            if token is not None and text.count(token) != wanted:
                raise PromptFitError(
                    f"a post of {len(album)} pictures has {text.count(token)} places for them in the chat,"
                    f" expected {wanted}: the model's chat template does not show what it is given"
                )
        given = sum(map(len, albums))
        found = self._pictures_found(albums, inputs) if given else 0
        if found < given:
            raise PromptFitError(
                f"{given} pictures were given and {found} came back as pixels:"
                f" {type(self._processor).__name__} leaves the others out. "
                + ('Set model.album = "images"' if video else "Lower frames.count, or use another base model")
            )

    def _pictures_found(self, albums: Sequence[list[Any]], inputs: Inputs) -> int:
        """Return how many of the pictures given came back.

        Neither one in many tiles stands for another one, nor what fills up a video for a frame of another.
        """
        if "video_grid_thw" in inputs:
            frames = inputs["video_grid_thw"][:, 0] * int(self._processor.video_processor.temporal_patch_size)
            pairs = zip(filter(None, albums), frames.tolist(), strict=False)
            return sum(min(len(album), count) for album, count in pairs)
        found = pictures_in(inputs)
        if any(name in inputs for name in _ONE_A_PICTURE):
            return found
        video, shown, taken = self._album == "video", 0, list[_Taken]()
        for album, places in zip(albums, self._places(inputs).tolist(), strict=True):
            own = [self._taken_alone(album if video else [one]) for one in album]
            shown += _how_many([one.places for one in own], places)
            taken += own
        return min(shown, _how_many([one.tiles for one in taken], found))

    def _places(self, inputs: Inputs) -> torch.Tensor:
        """Return [B] the tokens that stand for pictures."""
        names = ("image_token_ids", "video_token_ids")
        ids = {one for name in names for one in getattr(self._processor, name, None) or []} - {None}
        return torch.isin(inputs["input_ids"], torch.tensor(sorted(ids), dtype=torch.long)).sum(1)

    def _taken_alone(self, pictures: Sequence[Image.Image]) -> _Taken:
        """Return what each takes in a post of its own: of one picture, or of the frames of a video."""
        count, size = len(pictures), pictures[0].size
        if (count, size) not in self._taken:
            text = self._chat(self.words.around(""), count)
            inputs = self._processed([text], [[Image.new("RGB", size)] * count])
            found = int(self._places(inputs)), max(pictures_in(inputs), count)
            self._taken[count, size] = _Taken(*(Fraction(one, count) for one in found))
        return self._taken[count, size]


class _Taken(NamedTuple):
    """What one picture takes, or one frame of a video."""

    places: Fraction  # tokens that stand for it
    tiles: Fraction  # pictures that it is cut into


def _how_many(takes: Sequence[Fraction], there: int) -> int:
    """Return how many pictures, which take so much each, fit into what is there, from the first on."""
    return sum(taken <= there for taken in accumulate(takes))


def from_parts(
    name: str,
    whole: Any,  # noqa: ANN401
    processor: Any,  # noqa: ANN401
    *,
    album: Album = "images",
    revision: str = "",
) -> Mllm:
    """Return the model of a ``...ForConditionalGeneration`` and its processor, on the CPU.

    Weights in float16 become bfloat16: float16 ends at 65,504, and what is computed in bfloat16 or learned
    without a scaled loss does not stay below that. WeightsError: it has no known language model.
    """

    def write(_: nn.Module, folder: Path) -> None:
        with quiet_loading():
            whole.save_pretrained(folder)

    for tensor in (*whole.parameters(), *whole.buffers()):
        if tensor.dtype == torch.float16:
            tensor.data = tensor.data.to(torch.bfloat16)
    module = whole.base_model
    language = next((name for name in _LANGUAGE if hasattr(module, name)), None)
    if language is None:
        parts = ", ".join(name for name, _ in module.named_children())
        raise WeightsError(
            f"{name}, a {type(whole).__name__}, has the parts {parts}: expected one of"
            f" {', '.join(_LANGUAGE)}, whose layers get the adapters"
        )
    fingerprint = _fingerprint(module, processor)
    add_answer_token(whole, processor.tokenizer)
    for parameter in whole.parameters():
        parameter.requires_grad_(False)
    tower = next((name for name in _TOWERS if hasattr(module, name)), None)
    text = whole.config.get_text_config()
    return Mllm(
        name=name,
        module=module.eval(),
        width=text.hidden_size,
        tokenizer=processor.tokenizer,
        reader=lambda wording, padding, budget: HubReader(processor, wording, padding, budget, album),
        language_layers=linear_layers(module, language),
        vision_layers=linear_layers(module, tower) if tower else (),
        new_parts=(),
        fingerprint=fingerprint,
        write=write,
        revision=revision,
        positions=getattr(text, "max_position_embeddings", None) or 0,
    )


def _frames(album: list[Any], least: int) -> Any:  # noqa: ANN401
    """Return pictures of one size as [frames, 3, height, width].

    Of fewer than `least` the last one is shown again: some processors do so, some refuse.
    """
    from torchvision.transforms.functional import pil_to_tensor

    shown = [*album, *album[-1:] * (least - len(album))]
    return torch.stack([pil_to_tensor(image) for image in shown])


def _metadata(frames: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what a video's processor is told of its frames: all of them, one a second."""
    count = len(frames)
    return {"total_num_frames": count, "fps": 1.0, "frames_indices": list(range(count)), "duration": count}


def pictures_in(inputs: Inputs) -> int:
    """Return how many pictures, or tiles of pictures, stand in what a processor gave; no video's grid.

    Some families say it by sizes, one a picture or tile, some by the shape of the pixels alone.
    """
    for name in (*_ONE_A_PICTURE, "spatial_shapes"):
        if name in inputs:
            return len(inputs[name])
    pixels = inputs.get("pixel_values", inputs.get("pixel_values_videos"))
    if pixels is None:
        return 0
    mask = inputs.get("pixel_attention_mask")
    if mask is not None and mask.ndim == 4:  # [B, tiles, height, width], padded by empty tiles
        return int(mask.flatten(2).any(2).sum())
    return pixels.shape[0] * (pixels.shape[1] if pixels.ndim == 5 else 1)


def _fingerprint(module: nn.Module, processor: Any) -> str:  # noqa: ANN401
    """Return the digest of every number of the weights, and of what the processor makes of words."""
    tokenizer = processor.tokenizer
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    reads = [tokenizer(text)["input_ids"] for text in PROBES]
    made = [ModuleDigest(module).hexdigest(), template, reads]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()
