"""What the page says first and last: the claims beside the figures, what was run, and how to run it again."""

from __future__ import annotations

from serverlight.apps.report.blocks import Block, Code, Section, Table, Text
from serverlight.apps.report.found import Found, listed
from serverlight.apps.report.sections.load import least_server_time
from serverlight.apps.report.sections.rates import best_reduction, worst_loss
from serverlight.apps.report.stages import STAGES
from serverlight.environment import describe_environment

__all__ = ["claims", "lead", "provenance"]

NOT_HERE = "not measured here"


def lead() -> str:
    """Where, when and with what the page was written."""
    about = describe_environment()
    versions = listed(f"{name} {version}" for name, version in about["versions"].items())
    gpu = about["gpu"] or "no GPU"
    return (
        f"serverlight, the open implementation of SLICER (arXiv 2511.11608), beside its rivals. Written on {about['date']}: "
        f"{about['cpu']}, {about['cores']} cores, {gpu}; Python {about['python']}, {versions}. Made by `serverlight report`; when "
        "and how each figure was measured stands at the end."
    )


def claims(found: Found) -> Section:
    """What the paper claims, and what was found here."""
    rows = [
        ["uplink", "up to 10x fewer bytes", best_reduction(found) or NOT_HERE],
        ["server time", "up to 4.4x less GPU time", least_server_time(found) or NOT_HERE],
        ["task quality", "0 to 3 points lost", worst_loss(found) or NOT_HERE],
    ]
    blocks: list[Block] = [
        Table(columns=("what", "claimed by the paper", "found here"), rows=rows, words=(0, 1, 2)),
        Text(
            text="The paper's figures are of ImageNet and COCO, and of Llama-2-7B on a GPU; those here are of the models named in "
            "each table, on this machine's processor. ImageNet and Llama-2-7B were **not run** unless they are named below: the "
            "same command runs them where they are, as the last section says.",
            is_note=True,
        ),
    ]
    if found.settings.is_quick:
        blocks.insert(
            0,
            Text(text="**A quick look:** few samples, coarse grids and short turns. Its figures show what the page has, and are "
                 "not to be quoted.", is_gap=True),
        )  # fmt: skip
    return Section(name="claims", title="In short", blocks=blocks)


def provenance(found: Found) -> Section:
    """Every part with its state, time and command; and how to do it again, or with other models."""
    titles = {stage.name: stage.title for stage in STAGES}
    budgets = [[stage.name, stage.title, stage.budget(found.settings)] for stage in STAGES]
    rows = [
        [r.name, r.status, r.date or "-", f"{r.seconds:,.0f}" if r.seconds else "-", r.cpu or "-", f"`{r.told}`"]
        for r in found.records
    ]
    not_run = [[r.name, r.status, r.reason] for r in found.records if r.status != "done"]
    blocks: list[Block] = [
        Text(text="Limits of the stages, chosen so that all of it takes an hour on two cores:"),
        Table(columns=("stage", "what", "budget"), rows=budgets, words=(0, 1, 2)),
    ]
    if not_run:
        blocks.append(
            Table(title="What was not run, and why", columns=("part", "state", "reason"), rows=not_run, words=(0, 1, 2))
        )
    columns = ("part", "state", "date", "seconds", "processor", "made by")
    total = sum(record.seconds for record in found.records) / 60
    title = (
        f"What was run: {len(rows) - len(not_run)} of {len(rows)} parts of {len(titles)} stages, {total:.0f} minutes"
    )
    blocks += [
        Table(title=title, columns=columns, rows=rows, words=(0, 1, 2, 4, 5), folded=True),
        Text(text="Again, or with other models and data; what has been measured already is not measured anew:"),
        Code(text=COMMANDS),
    ]
    return Section(name="provenance", title="What was run, and what was not", blocks=blocks)


COMMANDS = """\
$ make reproduce                                    # all of it with ../shared/data
$ serverlight report --data DATA --stages rates,load   # some stages; `--list` names them
$ serverlight report --models microsoft/resnet-34=imagenet_val.zip,meta-llama/Llama-2-7b-hf=text.txt
$ serverlight eval meta-llama/Llama-2-7b-hf --tasks hellaswag,piqa,boolq,gsm8k --cut layers.16"""
