"""Multimodal language models with answer heads: AgentPS (arXiv 2412.15251)."""
