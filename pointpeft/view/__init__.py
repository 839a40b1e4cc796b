"""What people look at: pages, token maps, embeddings, the service."""
