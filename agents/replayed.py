"""Agents replayed from files: what was answered once, and nothing else.

`replayed_agents` reads what a run wrote, one JSON object a line: verdicts, or single judgments with a
``post_id``; when a post was judged twice, the later line counts. `AnswersPanel` holds plain answers of any
model, a file a model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.ask.metering import UsageTotals
from agents.errors import JudgmentError, ReplayError
from agents.judgment import Accepted, Candidate, Judgment, LabelledPost, PostLike, State, Verdict


class ReplayedAgent:
    """One role's judgments by post and step.

    A post, or a step, that is not in the file is `failed`: a judgment is never invented. The first judgment
    is not taken for the second, because it was made without seeing the others.
    """

    def __init__(self, role: str, judgments: Mapping[tuple[str, int], Judgment], source: str) -> None:
        """Args: `judgments` by (post id, step); `source` names where they came from."""
        self.role = role
        self.source = source
        self._judgments = dict(judgments)

    @property
    def simulated(self) -> bool:
        """Whether any replayed judgment was simulated when it was made."""
        return any(judgment.source.startswith("simulated") for judgment in self._judgments.values())

    def judge(self, posts: Sequence[PostLike]) -> list[Judgment]:
        """Return what was said of each post alone."""
        return [self._replay(post.id, 0) for post in posts]

    def reconsider(
        self, candidates: Sequence[Candidate], own: Sequence[Judgment], other: Sequence[Judgment]
    ) -> list[Judgment]:
        """Return what was said after the cross-review."""
        return [self._replay(candidate.post.id, 1) for candidate in candidates]

    def describe(self) -> dict[str, Any]:
        """Return where the judgments come from, and how many there are."""
        return {
            "role": self.role,
            "source": self.source,
            "simulated": self.simulated,
            "judgments": len(self._judgments),
        }

    def _replay(self, post_id: str, step: int) -> Judgment:
        found = self._judgments.get((post_id, step))
        if found is not None:
            return found
        reason = f"{self.source} holds no judgment of {self.role} on this post at step {step}."
        return Judgment(self.role, step, State.FAILED, None, None, reason, self.source)


def replayed_agents(path: Path | str) -> tuple[ReplayedAgent, ...]:
    """Read one agent a role in the file, in the order in which the roles first appear.

    Raises:
        ReplayError: A file that cannot be read, a line that is no record (the message names it), or no line.
    """
    path = Path(path)
    found: dict[str, dict[tuple[str, int], Judgment]] = {}
    for number, line in _lines(path):
        try:
            post_id, judgments = _read(json.loads(line))
        except (ValueError, RecursionError) as error:  # a JudgmentError among them
            raise ReplayError(f"{path}, line {number}: {error}") from error
        for judgment in judgments:
            found.setdefault(judgment.agent, {})[post_id, judgment.step] = judgment
    if not found:
        raise ReplayError(f"{path} holds no judgment")
    return tuple(ReplayedAgent(role, said, source_of(path)) for role, said in found.items())


def _read(record: object) -> tuple[str, tuple[Judgment, ...]]:
    """Return post id and judgments of a verdict's record, or of a judgment's that carries a ``post_id``."""
    if not isinstance(record, dict):
        raise JudgmentError(f"a record is a JSON object, not {type(record).__name__}")
    if "judgments" in record:
        verdict = Verdict.from_json(record)
        return verdict.post_id, verdict.judgments
    post_id = record.get("post_id")
    if not isinstance(post_id, str):
        raise JudgmentError(f"post_id {post_id!r}: expected a string")
    return post_id, (Judgment.from_json({key: value for key, value in record.items() if key != "post_id"}),)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1."""
    if path.exists() and not path.is_file():  # a FIFO would block, a device never end
        raise ReplayError(f"{path} is no regular file; expected JSON lines")
    try:
        # not splitlines: JSON may hold U+2028 and its like, which end no line
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ReplayError(
            f"{path} is no UTF-8 text ({error.reason}); write it as plain JSON lines"
        ) from error
    except OSError as error:
        raise ReplayError(f"{path}: {error}") from error
    yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


# ---- plain answers of any model, a file each ----------------------------------------------------------


SHOWN_IDS = 5
"""Ids of posts without an answer that a message names."""


class AnswersPanel:
    """One agent a file of answers, one or more; implements `Panel`, and says what its answers would cost.

    Each file is an agent, called by the file's stem. What it answered does not depend on the classifier or on
    the others, so there is one judgment an agent and post, of step 0, on labelled posts as on candidates. A
    post that is not in the file is `failed`: an answer is never invented.

    Args:
        answers: Files, and post id -> judgment of each, see `selftrain.data.answer_files.read_answers`.

    Raises:
        ReplayError: No file, or two of one stem.
    """

    simulated = False

    def __init__(self, answers: Sequence[tuple[Path, Mapping[str, Judgment]]]) -> None:
        stems = Counter(path.stem for path, _ in answers)
        if not answers or max(stems.values()) > 1:
            raise ReplayError(
                f"files of answers {[str(path) for path, _ in answers]}: expected one or more, each with a"
                " name of its own, because an agent is called by its file's name"
            )
        self._files = {path.stem: path for path, _ in answers}
        self._answers = {path.stem: dict(judgments) for path, judgments in answers}
        self._asked: set[tuple[str, str]] = set()
        self._usage = UsageTotals()

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Learn nothing: what was answered stands."""

    def verify(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate, in order: a judgment of each agent."""
        said = self._judge([candidate.post for candidate in candidates])
        judgments = zip(*said.values(), strict=True)
        return [
            Verdict(one.post.id, one.label, one.probability, given)
            for one, given in zip(candidates, judgments, strict=True)
        ]

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> dict[str, list[Judgment]]:
        """Return each agent's answers on posts of known label, which it has not learned from."""
        return self._judge(labelled)

    def describe(self) -> dict[str, Any]:
        """Return the files, and how many answers each holds."""
        return {
            "protocol": "answers",
            "simulated": False,
            "agents": [
                {
                    "role": role,
                    "source": source_of(path),
                    "simulated": False,
                    "answers": len(self._answers[role]),
                }
                for role, path in self._files.items()
            ],
        }

    def missing(self, posts: Sequence[PostLike]) -> Iterator[str]:
        """Yield a message for each agent that has no answer on some of the posts."""
        for role, answers in self._answers.items():
            ids = [post.id for post in posts if post.id not in answers]
            if ids:
                listed = ", ".join(ids[:SHOWN_IDS]) + (", ..." if len(ids) > SHOWN_IDS else "")
                file = self._files[role].name
                yield f"{role}: {len(ids):,} of {len(posts):,} posts have no answer in {file} ({listed})"

    def usage(self) -> UsageTotals:
        """Return what a model that keeps its answers would have been asked: each post once an agent."""
        return self._usage

    def close(self) -> None:
        """Hold nothing open."""

    def _judge(self, posts: Sequence[PostLike]) -> dict[str, list[Judgment]]:
        return {role: [self._answer(role, post.id) for post in posts] for role in self._answers}

    def _answer(self, role: str, post_id: str) -> Judgment:
        found = self._answers[role].get(post_id)
        if found is None:
            self._usage = self._usage.plus(UsageTotals(failed=1))
            path = self._files[role]
            return Judgment(role, 0, State.FAILED, None, None, f"no answer in {path.name}", source_of(path))
        known = (role, post_id) in self._asked
        self._asked.add((role, post_id))
        self._usage = self._usage.plus(UsageTotals(stored=1) if known else UsageTotals(calls=1))
        return found


def source_of(path: Path) -> str:
    """Return the source of judgments that are read from a file."""
    return f"replayed:{path.name}"
