"""An emulation of CUDA on the CPU for the project's kernels; docs/reliability.rst says what it checks, and cannot."""
