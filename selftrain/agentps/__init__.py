"""AgentPS (arXiv 2412.15251): a multimodal language model fine-tuned on the grown data, questions and all.

recipe -> dataset (questions, posts with targets) -> model -> train -> checkpoint -> evaluate, predict.
"""
