"""Methods that add small networks beside or behind the frozen layers."""
