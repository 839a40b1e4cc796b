"""Why a fault that no test sees does no harm: each was looked at.

(file, the line as it is, the line with the fault) -> the reason. A line that has changed since asks for a new look.
"""

VERDICTS: dict[tuple[str, str, str], str] = {}
