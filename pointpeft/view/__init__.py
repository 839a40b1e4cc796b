"""Presentation: pages, token maps, embeddings, the service."""
