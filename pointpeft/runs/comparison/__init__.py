"""Many runs under one recipe, and one table of them."""
