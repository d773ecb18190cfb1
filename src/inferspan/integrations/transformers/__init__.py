"""Hugging Face transformers: pipelines, ``generate()``, tokenizers, models, loading."""
