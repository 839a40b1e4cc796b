"""Parameter names, and pre-trained weights by name or file."""
