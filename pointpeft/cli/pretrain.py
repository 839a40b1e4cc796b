"""`pointpeft pretrain`: a backbone from clouds without labels."""

from pointpeft.training.config import PretrainConfig

__all__ = ["PretrainConfig", "run"]


def run(command: PretrainConfig) -> int:
    """Pre-trains and prints where the weights are."""
    from pointpeft.training.pretraining import pretrain

    result = pretrain(command)
    for name in ("clouds", "epochs", "training minutes", "clouds per second", "first loss", "last loss"):
        print(f"{name:20} {result.facts[name]}")
    print(f"{'weights':20} {result.weights}")
    return 0
