"""How verdicts become labels: the article's three-way agreement, or a posterior of all that is known."""
