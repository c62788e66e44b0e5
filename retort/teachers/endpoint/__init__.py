"""Any OpenAI-compatible server: asked over HTTP, or through batch files."""
