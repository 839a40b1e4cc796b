"""`pointpeft pretrain`: a backbone from clouds without labels."""

from pointpeft.runs.config import PretrainConfig

__all__ = ["PretrainConfig", "run"]


def run(command: PretrainConfig) -> int:
    """Pre-trains and prints where the weights are."""
    from pointpeft.runs.pretrain import pretrain
    from pointpeft.training.processes import rank_and_world

    result = pretrain(command)
    if rank_and_world()[0] > 0:
        return 0
    for name in ("clouds", "epochs", "training minutes", "clouds per second", "first loss", "last loss"):
        print(f"{name:20} {result.facts[name]}")
    print(f"{'weights':20} {result.weights}")
    return 0
