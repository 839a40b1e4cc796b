"""Why a fault that no test sees does no harm: each was looked at.

(file, the line as it is, the line with the fault) -> the reason. A line that has changed since asks for a new look.
"""

VERDICTS: dict[tuple[str, str, str], str] = {
    (
        "pointpeft/ops/dynamic_adapter.py",
        "if training and dropout_p > 0:",
        "if training and dropout_p >= 0:",
    ): "equivalent: with a probability of 0 the mask keeps everything and is divided by 1",
    (
        "pointpeft/ops/patch_embed.py",
        '({"GROUPS": 2, "BLOCK": 64, "BLOCK_C": 256}, 8, 2),',
        '({"GROUPS": 2, "BLOCK": 64, "BLOCK_C": 256}, 8, 3),',
    ): "the stages of a pipeline that autotuning tries: time on a GPU, never a result",
    (
        "pointpeft/ops/scale_shift.py",
        "splits = max(1, min(SPLITS, -(-n // 16)))",
        "splits = max(1, min(SPLITS, -(-n // 17)))",
    ): "how many partial sums the rows are parted into: another order of rounding",
}
