"""A model at work: one contract for both kinds, an HTTP server, a filter over streams, and ONNX."""
