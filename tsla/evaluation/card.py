"""The card of a run: what was trained, how well it does, and the command that makes it again, as Markdown."""

from collections.abc import Mapping
from typing import Any

from tsla.evaluation.result import cost_line, pretrain_line


def run_card(result: Mapping[str, Any], title: str) -> str:
    """README.md of a run directory, from the content of its result.json."""
    monitor = result["monitor"]
    lines = [f"# {title}", "", "```", result["command"], "```", ""]
    lines += [f"Experiment {result['experiment']}, commit {result['git_sha'] or 'unknown'}.", ""]
    lines += ["| score | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4f} |" for name, value in result["metrics"].items()]
    lines += [f"| {name} (reference, {monitor}) | {value:.4f} |" for name, value in result["references"].items()]
    lines += ["", f"Test scores are of the checkpoint best on validation, step {result['best_step']}.", ""]
    lines += [f"{cost_line(result)}.", ""]
    if "pretrain" in result:
        lines += [f"{pretrain_line(result['pretrain']).capitalize()}.", ""]
    lines += ["![learning curve](curves.png)", ""]
    for name, parts in result["slices"].items():
        lines += [f"| {name} | items | test {result['slice_score']} |", "|---|---|---|"]
        lines += [f"| {part['value']} | {part['items']:,} | {part['score']:.3f} |" for part in parts]
        lines += [""]
    facts = {**result["versions"], **result["host"]}
    lines += [", ".join(f"{name} {value}" for name, value in facts.items() if value is not None) + "."]
    return "\n".join(lines) + "\n"
