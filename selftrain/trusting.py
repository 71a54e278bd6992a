"""Before a pool is spent on: how good the agents are on posts whose labels are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from agents.errors import UntrustedError
from agents.judgment import LabelledPost
from agents.review import Panel
from agents.trust import Trust, trust

NearChance = Literal["stop", "go on"]


def examine(panel: Panel, labelled: Sequence[LabelledPost], near_chance: NearChance) -> dict[str, Any]:
    """The agents' figures on the labelled posts, as JSON values; see `Trust.to_json`.

    Args:
        panel: Has learned from `labelled` already.
        labelled: Posts of known label.
        near_chance: What to do about an agent that may be guessing.

    Raises:
        UntrustedError: An agent is near chance and the recipe does not say "go on".
    """
    figures = trust(panel, labelled)
    guessing = [role for role, agent in figures.agents.items() if agent.near_chance]
    if guessing and near_chance == "stop":
        raise UntrustedError(_advice(figures, guessing, len(labelled)))
    return figures.to_json()


def _advice(figures: Trust, guessing: Sequence[str], posts: int) -> str:
    chance = 1 / max(len(agent.confusion) for agent in figures.agents.values())
    lines = []
    for role in guessing:
        agent = figures.agents[role]
        value, low, high = agent.balanced
        lines.append(
            f"  {role}: balanced accuracy {value:.2f} ({low:.2f} to {high:.2f}) on {posts} labelled posts,"
            f" {agent.answered} of them answered; {chance:.2f} is guessing"
        )
    return (
        "near chance on posts of known label:\n" + "\n".join(lines) + "\nTheir word is worth nothing here,"
        " so nothing of the pool was judged. Try a stronger model, say more in the task's policy, look at a"
        " prompt with `selftrain prompts RECIPE --post ID`, or label more posts if the interval is merely"
        ' wide. To go on all the same: agents.near_chance = "go on"'
    )
