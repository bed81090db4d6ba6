"""Both stages of MKT, as small as they get."""

PRETRAIN = {"name": "mkt_pretrain", "expert_widths": [8, 6], "aligned_dim": 4, "tower_widths": [4]}
FINETUNE = {"name": "mkt_finetune", "widths": [8], "head_widths": [4]}
MEM = {"name": "mkt_pretrain", "expert_widths": [6, 5], "aligned_dim": 3, "tower_widths": [4], "levels": 2}
"""A first stage of two levels."""
TEM = {"name": "mkt_finetune", "widths": [6], "head_widths": [4]}
"""A second stage for it."""
