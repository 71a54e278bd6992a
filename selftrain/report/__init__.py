"""What a run has come to: its page, `report.html`, which needs no other file; `status`; comparisons.

`run_page` gathers the figures from the folder's files and draws them; the browser of verdicts is gathered in
`verdict_browser` and runs in verdicts.js. `model_page` does the same for a model of AgentPS. What comes from
posts, agents or files is data everywhere: control characters are written as escapes, templates escape, the
scripts set text alone, and a content security policy stands behind them.

A run folder that is none, or is damaged, is a `RunStateError` everywhere, a model's folder a `ModelError`; a
disk that refuses is a `StorageError`.
"""
