"""An agent replayed from a file: what it said once, and nothing else.

A file holds one record a line: verdicts (a run's ``verdicts.jsonl``) or single judgments with a ``post_id``.
When a post was judged twice, the later line counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.errors import JudgmentError, ReplayError
from agents.judgment import Candidate, Judgment, PostLike, State, Verdict


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


def replayed_agents(path: Path) -> tuple[ReplayedAgent, ...]:
    """Read one agent a role in the file, in the order in which the roles first appear.

    Raises:
        ReplayError: A file that cannot be read, a line that is no record (the message names it), or no line.
    """
    found: dict[str, dict[tuple[str, int], Judgment]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            post_id, judgments = _read(json.loads(line))
        except (json.JSONDecodeError, JudgmentError) as error:
            raise ReplayError(f"{path}, line {number}: {error}") from error
        for judgment in judgments:
            found.setdefault(judgment.agent, {})[post_id, judgment.step] = judgment
    if not found:
        raise ReplayError(f"{path} holds no judgment")
    return tuple(ReplayedAgent(role, said, f"replayed:{path.name}") for role, said in found.items())


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
