"""What EXIT can be told, and which tasks of a schema fit that."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from torchrec_xd.errors import UserError
from torchrec_xd.models.blocks import NetSettings, Widths
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings


class SourceSettings(Settings):
    """A source domain: the tasks (`<label>@<domain>`) whose labels hold what the user wanted there."""

    wanted: str
    """`y_s`, of target rows: did the user act on the item in this source, within the label window."""
    fit: str
    """`c`, of target rows: is this source interest fit for the target."""
    own: str | None = None
    """Label of the source domain's own rows, if they are to teach its tower too (they feed nothing else)."""


class ExitSettings(NetSettings):
    """EXIT. Its labels come from `prepare` or `label`; these settings name their columns."""

    name: Literal["exit"] = "exit"
    target: str
    """Task of `y_t`: did the user act on the item in the target domain."""
    sources: dict[str, SourceSettings] = Field(min_length=1)
    """Any number, by name."""
    widths: Widths = Field(default=(1024, 512, 64), min_length=1)
    """Layers of every tower."""
    scene_widths: Widths = (64,)
    """Layers of the scene selector network."""
    ssn: bool = True
    """False is the ablation "w/o SSN": a learned constant per source."""
    icl: bool = True
    """False is the ablation "w/o ICL": no transfer term, the whole prediction learns `y_t` by cross entropy. Rows with
    P above .9 and `y_t = 0` pay by its tangent there: a plain truncation to 1 would leave them without a gradient just
    where P is most wrong (extension)."""
    transfer_on: Literal["whole", "transfer"] = "whole"
    """What the transfer term compares. whole: the prediction P with the label `y_icl`. transfer: `P_tr` with `c`, over
    rows with `y_s = 1`. The summaries of the paper that we have allow both readings."""
    transfer_error: Literal["absolute", "squared", "cross_entropy"] = "absolute"
    """How it compares. absolute: the paper's L1 term. An absolute error is least at the median: `P_tr` falls to 0 where
    most like rows have no fitting interest. squared, cross_entropy (extensions): least at the probability, so that
    `P_tr` can be read as one. cross_entropy needs `transfer_on: transfer`, as `y_icl` may exceed 1."""
    target_on: Literal["tower", "whole"] = "tower"
    """What the target's cross entropy compares with `y_t`. tower: `P_t`, as in the paper. It learns every positive row,
    those that a fitting interest explains too, and the sum P counts them twice. whole (extension): P itself, so that
    `P_t` is left with what no source explains, and P is a probability."""
    scene_to_towers: bool = False
    """Whether the towers read the scene, too (extension); in the paper the selector alone does. Rows of a source
    without the scene's columns read zeros there."""
    target_weight: NonNegativeFloat = 1.0
    """lambda 1, of the target's cross entropy."""
    source_weight: NonNegativeFloat = 1.0
    """lambda 2, of the source towers' cross entropies."""
    transfer_weight: NonNegativeFloat = 1.0
    """lambda 3, of the transfer term, or w/o ICL of the cross entropy of the whole prediction."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_name(cls, content: Any) -> Any:
        """Version 0.1.0 called `transfer_on` transfer_loss, and did not read it w/o ICL."""
        if not isinstance(content, dict) or "transfer_loss" not in content:
            return content
        if "transfer_on" in content:
            raise ValueError("transfer_loss is the old name of transfer_on: give transfer_on, not both")
        kept = {key: value for key, value in content.items() if key != "transfer_loss"}
        return kept if content.get("icl") is False else {**kept, "transfer_on": content["transfer_loss"]}

    @model_validator(mode="after")
    def _check_transfer(self) -> ExitSettings:
        if not self.icl and (self.transfer_on, self.transfer_error) != ("whole", "absolute"):
            raise ValueError(
                "icl: false has no transfer term: leave transfer_on and transfer_error out, or set icl: true"
            )
        if not self.icl and self.target_on == "whole":
            raise ValueError(
                "icl: false learns y_t by the cross entropy of the whole prediction already (transfer_weight): leave "
                "target_on out, or set icl: true"
            )
        if (self.transfer_on, self.transfer_error) == ("whole", "cross_entropy"):
            raise ValueError(
                "transfer_error: cross_entropy compares probabilities, and with transfer_on: whole the label y_icl is "
                "a sum that may exceed 1; take transfer_error: absolute or squared, or transfer_on: transfer"
            )
        return self

    @property
    def alone(self) -> str:
        """Name of the target tower's own prediction `P_t`, an auxiliary score next to the whole prediction."""
        return f"{self.target}/target"

    def tasks(self) -> tuple[str, ...]:
        """All tasks whose labels are read."""
        sources = self.sources.values()
        own = [source.own for source in sources if source.own is not None]
        return (self.target, *(s.wanted for s in sources), *(s.fit for s in sources), *own)


def check_tasks(schema: Schema, settings: ExitSettings) -> None:
    """Refuse settings whose tasks are not those of the schema.

    Raises:
        UserError: tasks that the schema lacks, that lie in the wrong domain, that nothing uses, or that are nullable.
    """
    domain_of = {task.name: task.domain for task in schema.tasks}
    known = ", ".join(domain_of)
    for task in settings.tasks():
        if task not in domain_of:
            raise UserError(f"model 'exit' names task '{task}'; tasks in use are: {known}")
    unused = [task for task in domain_of if task not in settings.tasks()]
    if unused:
        used = ", ".join(settings.tasks())
        raise UserError(f"model 'exit' does not use task '{unused[0]}'; leave it out: tasks: [{used}]")
    target = domain_of[settings.target]
    for name, source in settings.sources.items():
        for task in (source.wanted, source.fit):
            if domain_of[task] != target:
                raise UserError(
                    f"model.sources.{name}: '{task}' must be a label of the rows of '{settings.target}', in '{target}'"
                )
        if source.own is not None and domain_of[source.own] == target:
            raise UserError(f"model.sources.{name}.own: '{source.own}' lies in '{target}', not in a source domain")
    for label in schema.tasks:
        if label.nullable and label.domain == target:
            raise UserError(
                f"model 'exit' adds all labels of a row in '{target}' up to its interest combination label, which is "
                f"unknown where one is missing: '{label.name}' cannot be nullable; leave such rows out of the files"
            )
