"""Teachers that run in this process through Hugging Face transformers."""
