"""Teachers behind any OpenAI-compatible server, over HTTP or through batch files."""
