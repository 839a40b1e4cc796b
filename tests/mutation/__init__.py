"""Small faults in the operations' code, one at a time: which of them no test sees."""
