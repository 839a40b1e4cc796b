"""What is asked of a model: of a whole cloud, of its parts, of a scene."""
