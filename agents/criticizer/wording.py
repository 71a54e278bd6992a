"""Prompts of annotator and criticizer: files, filled from the task and the post.

Task, policy and post come first and are the same in every call on a post, so that a server keeps them in its
prefix cache; what is asked, and in which form, comes last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from string import Template

from ..chat.base import Message, Picture
from ..errors import PromptError
from ..vlm.brief import Brief
from ..vlm.fencing import cut, neutralise, quoted
from ..vlm.forms import Form
from ..vlm.prompts import Prompts
from .strategies import STRATEGIES

BUILT_IN = Path(__file__).parent / "prompts"
_OPTIONS = {"options", "unsure"}
PLACEHOLDERS: dict[str, set[str]] = {
    "system.txt": {"task", "policy", "classes"},
    "annotate.plain.txt": _OPTIONS,
    "annotate.reasoning.txt": _OPTIONS,
    **{
        f"criticize.{one.name}.txt": _OPTIONS | ({"reasoning"} if one.sees_reasoning else {"label"})
        for one in STRATEGIES.values()
    },
}
"""File -> its placeholders; every file uses all of its own."""


class Wording:
    """The prompt files of annotator and criticizer, for one task.

    Args:
        brief: Policy and classes.
        folder: Files that replace the built-in ones of the same name; None for none.
        text_chars: Most characters of a post's text, and of an annotator's reasons.
        special: Strings that the tokenizer treats as single tokens, see `fencing.neutralise`.

    Raises:
        PromptError: A file of no known name, or one whose placeholders are not its own.
    """

    def __init__(
        self,
        brief: Brief,
        *,
        folder: Path | None = None,
        text_chars: int = 4000,
        special: Collection[str] = (),
    ) -> None:
        self.brief = brief
        self._text_chars = text_chars
        self._special = tuple(special)
        self._posts = Prompts(brief, text_chars=text_chars, special=special)
        self._templates = _read(folder)

    def system(self) -> Message:
        """Task, policy and classes: the same for every call."""
        classes = "\n".join(f"- {name}: {meaning}" for name, meaning in self.brief.classes.items())
        words = self._fill(
            "system.txt", task=self.brief.task, policy=self.brief.policy.strip(), classes=classes
        )
        return Message("system", (words,))

    def question(
        self,
        template: str,
        form: Form,
        text: str,
        pictures: Sequence[Picture],
        *,
        label: str = "",
        reasoning: str = "",
    ) -> Message:
        """One post, and at the end what is asked about it.

        Args:
            template: "annotate.plain" and so on: a file's name without its ending.
            form: Of the answer.
            text, pictures: Of the post.
            label: The annotator's class, where the prompt shows it.
            reasoning: The annotator's reasons, where the prompt shows them; shown with the class.
        """
        said = quoted(cut(neutralise(reasoning, self._special), self._text_chars).text)
        ending = self._fill(
            f"{template}.txt",
            options=", ".join(f'"{name}"' for name in form.classes),
            unsure=form.unsure,
            label=label,
            reasoning=f'"{label}"\n{said}' if reasoning.strip() else f'"{label}" (no reasons were given)',
        )
        return self._posts.post(text, pictures, ending)

    def _fill(self, file: str, **values: str) -> str:
        allowed = PLACEHOLDERS[file]
        filled = self._templates[file].substitute({k: v for k, v in values.items() if k in allowed})
        return filled.strip("\n")


def _read(folder: Path | None) -> dict[str, Template]:
    """Every file, the user's where there is one; all are checked, used or not."""
    own: dict[str, Path] = {}
    if folder is not None:
        try:
            own = {file.name: file for file in folder.iterdir() if not file.name.startswith(".")}
        except OSError as error:
            raise PromptError(
                f"no prompt files can be read from {folder}: {error.strerror or error}"
            ) from error
    strangers = sorted(own.keys() - PLACEHOLDERS.keys())
    if strangers:
        raise PromptError(
            f"{folder} holds {strangers}; expected only prompt files named {sorted(PLACEHOLDERS)}: rename or"
            " remove them"
        )
    return {name: _template(own.get(name, BUILT_IN / name), wanted) for name, wanted in PLACEHOLDERS.items()}


def _template(file: Path, wanted: set[str]) -> Template:
    try:
        template = Template(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"the prompt file {file} cannot be read: {error}") from error
    found = set(template.get_identifiers()) if template.is_valid() else None
    if found is None or found - wanted or (wanted - {"unsure"}) - found:
        told = "a $ that begins no placeholder" if found is None else f"the placeholders {sorted(found)}"
        raise PromptError(
            f"{file} has {told}; expected {sorted(wanted)}: correct them, and write $$ for a dollar sign"
        )
    return template
