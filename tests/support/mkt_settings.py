"""Both stages of MKT, as small as they get."""

MEM = {"name": "mkt_pretrain", "expert_widths": [6, 5], "aligned_dim": 3, "tower_widths": [4], "levels": 2}
TEM = {"name": "mkt_finetune", "widths": [6], "head_widths": [4]}
