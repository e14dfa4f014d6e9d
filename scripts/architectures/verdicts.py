"""Judges the row of a case: what works, what is refused, and what is wrong."""

from dataclasses import dataclass, field
from typing import Any

from .command import remedies

# KL divergence in nats at 8 bits: four fifths of the tokens stay below the first, and so does the mean where nothing is
# chosen. A router that chooses otherwise because of a small error changes a token much, hence the second for the mean.
WRONG_LOGITS, WRONG_CHOICES = 0.03, 0.3
# Where a small error changes most tokens of a chaotic model of experts, it still shrinks with the bits.
SHRINKS = 5  # times, from 4 to 8 bits; 200 is usual without experts
WRONG_STEPS = 0.005  # of steps with a cache from one forward, both at 8 bits
WHOLE, NO_CACHE, WEIGHTS = "works whole", "works, keys and values in 16 bits", "weights only"
WORKS = {"whole": WHOLE, "16-bit keys and values": NO_CACHE, "weights only": WEIGHTS}
REFUSED, ERROR, WRONG, NOT_RUN = "refused", "error", "wrong", "not run"
_OUR_ERROR = "internal error"


@dataclass
class Verdict:
    """What is said of a case.

    Attributes:
        outcome: one of the names above.
        reason: why it does not work whole; empty where it does.
        defects: what is false or broken, whatever the outcome.
    """

    outcome: str
    reason: str = ""
    defects: list[str] = field(default_factory=list)

    @staticmethod
    def of(row: dict[str, Any]) -> "Verdict":
        """The verdict of a row of scripts/check_architectures.py."""
        for stage in ("built", "plain"):
            if "crash" in row.get(stage, {}):
                return Verdict(NOT_RUN, f"plain transformers: {row[stage]['crash']}")
        tried = row["quantized"].get("tried")
        if tried is None:
            return Verdict(ERROR, row["quantized"]["crash"], [row["quantized"]["crash"]])
        defects = _of_refusals(tried)
        errors = [told["error"].removeprefix("error: ") for told in tried.values() if told["code"]]
        level = row["quantized"].get("level")
        if level is None:
            outcome = ERROR if any(_OUR_ERROR in error for error in errors) else REFUSED
            return Verdict(outcome, errors[0], defects)
        if broken := _broken(row):
            return Verdict(ERROR, "; ".join(broken), defects + broken)
        if wrong := _wrong(row):
            return Verdict(WRONG, "; ".join(wrong), defects + wrong)
        return Verdict(WORKS[level], errors[0] if errors else "", defects)


def line_of(row: dict[str, Any], verdict: Verdict) -> str:
    """One line for the terminal."""
    numbers = ""
    if verdict.outcome in (*WORKS.values(), WRONG) and "kl" in row.get("eight", {}):
        share = row["loaded"]["entries"] / max(1, row["loaded"]["original_entries"])
        numbers = f"{share:.0%} of entries, KL {row['loaded']['kl']:.4f}, at 8 bits {row['eight']['kl']:.5f}"
    defects = " · DEFECT: " + " · ".join(verdict.defects) if verdict.defects else ""
    return f"{row['name']:32} {row['seconds']:5.1f} s  {verdict.outcome}: {numbers} {verdict.reason}{defects}"


def _of_refusals(tried: dict[str, Any]) -> list[str]:
    """What is false about the refusals: errors of our own, remedies that fail, plans that say otherwise."""
    failed = {"--kv-bits 16": tried.get("16-bit keys and values"), "--weight-bits 4": tried.get("weights only")}
    found = []
    for level, told in tried.items():
        if told["code"] and _OUR_ERROR in told["error"]:
            found.append(f"{level}: {told['error']}")
        found += [
            f"the remedy {option} of {level} fails"
            for option in remedies(told["error"])
            if (failed.get(option) or {"code": 0})["code"]
        ]
        if bool(told["plan"]["code"]) != bool(told["code"]):
            found.append(f"{level}: --plan ends with {told['plan']['code']}, the run with {told['code']}")
    return list(dict.fromkeys(found))


def _broken(row: dict[str, Any]) -> list[str]:
    """Stages and commands that fail on a finished checkpoint."""
    found = [f"{stage}: {row[stage]['crash']}" for stage in ("checked", "loaded", "eight") if "crash" in row[stage]]
    commands = row["checked"] | {f"{name} at 8 bits": row["eight"].get(name) for name in ("quantize", "eval-ppl")}
    found += [
        f"{name}: {told['error']}" for name, told in commands.items() if isinstance(told, dict) and told.get("code")
    ]
    steps = row["loaded"].get("steps", {}) | row["eight"].get("steps", {})
    expected = row["plain"]["steps"]
    found += [
        f"generate, {way}: {said}"
        for way, said in steps.items()
        if isinstance(said, str) and not isinstance(expected[way], str)
    ]
    return found


def _wrong(row: dict[str, Any]) -> list[str]:
    """Numbers of a finished checkpoint that rounding does not explain."""
    eight, found = row["eight"], []
    if not (row["loaded"]["finite"] and eight["finite"]):
        found.append("logits are not finite")
    mean = WRONG_CHOICES if "experts" in row["plain"]["parts"] else WRONG_LOGITS
    most = mean if row["loaded"]["kl"] > SHRINKS * eight["kl"] else WRONG_LOGITS
    scores = [("most tokens", eight["kl_of_most"], most), ("the forward", eight["kl"], mean)]
    scores.append(("eval-ppl", eight["eval-ppl"].get("kl_divergence", 0.0), mean))
    found += [f"{name}: KL {value:.4f} at 8 bits" for name, value, limit in scores if not value < limit]
    for way, value in eight["steps"].items():
        usual = row["plain"]["steps"][way]
        if not isinstance(value, str) and not isinstance(usual, str) and not value < max(WRONG_STEPS, 3 * abs(usual)):
            found.append(
                f"generate, {way}: KL {value:.4f} from one forward at 8 bits, {usual:.4f} in plain transformers"
            )
    image = eight.get("image")
    if image is not None and not image["forward"] < mean:
        found.append(f"an image and text: KL {image['forward']:.4f} at 8 bits")
    if image is not None and not image["steps"] < max(WRONG_STEPS, 3 * abs(row["pictured"]["steps"])):
        found.append(f"generate from an image: KL {image['steps']:.4f} from one forward at 8 bits")
    return found
