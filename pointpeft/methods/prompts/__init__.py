"""Methods that add tokens, or keys and values, for the frozen layers to attend to."""
