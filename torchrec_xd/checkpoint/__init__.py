"""Checkpoints of a run, and what one run takes from another."""

from torchrec_xd.checkpoint.checkpoints import CheckpointChoice, Checkpoints, CheckpointSettings
from torchrec_xd.checkpoint.restoring import check_fits
from torchrec_xd.checkpoint.saved import POSITION, Saved, checksum, read_saved, write_saved
from torchrec_xd.checkpoint.scores import Scores
from torchrec_xd.checkpoint.transfer import TransferReport, transfer

__all__ = [
    "POSITION",
    "CheckpointChoice",
    "CheckpointSettings",
    "Checkpoints",
    "Saved",
    "Scores",
    "TransferReport",
    "check_fits",
    "checksum",
    "read_saved",
    "transfer",
    "write_saved",
]
