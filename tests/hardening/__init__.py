"""Scenarios that a process may meet in the world: kills, full disks, clocks that jump, forks, Ctrl-C."""
