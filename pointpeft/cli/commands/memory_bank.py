"""`pointpeft memory-bank`: Point-PEFT's memory bank of a data set, as a file."""

from pointpeft.cli.table import print_rows
from pointpeft.runs.config import MemoryBankConfig

__all__ = ["MemoryBankConfig", "run"]


def run(command: MemoryBankConfig) -> int:
    """Builds the bank and prints where it is and how to use it."""
    from pointpeft.runs.memory_bank import memory_bank

    facts = memory_bank(command)
    print_rows(facts)
    print(f"\nNext: pointpeft finetune DATA --method {facts['method']} --set bank={facts['file']}")
    return 0
