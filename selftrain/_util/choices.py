"""Choices that recipe, command line and the parts behind them offer alike; nothing is imported for them."""

from __future__ import annotations

from typing import Literal

Rule = Literal["normalised", "exponential", "threshold"]
"""How error estimates become chances of review, see `selftrain.act.budget`."""

StrategyName = Literal["plain", "reasoning", "graded", "devils_advocate", "log_probability", "perplexity"]
"""How a criticizer is asked, see `agents.ask.criticizer`."""

Mode = Literal["plain", "reasoning"]
"""How an annotator answers, see `agents.ask.annotator`."""

Order = Literal["sampled", "uncertain"]
"""How posts are handed out: as drawn, which is at random, or the likely errors first."""

Among = Literal["divergent", "accepted"]
"""What is reviewed of a run: posts that it could not label, or its pseudo-labels."""

Pictures = Literal["data-uri", "local-files"]
"""How Label Studio gets pictures, see `selftrain.review.exchange`."""
