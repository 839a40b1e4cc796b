"""Cases that once failed, found by the fuzzers."""
