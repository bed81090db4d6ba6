"""Checkpoints of a run, and what one run takes from another."""

from torchrec_xd.checkpoint.checkpoints import CheckpointChoice, Checkpoints, CheckpointSettings, Saved, read_saved
from torchrec_xd.checkpoint.transfer import TransferReport, transfer

__all__ = ["CheckpointChoice", "CheckpointSettings", "Checkpoints", "Saved", "TransferReport", "read_saved", "transfer"]
