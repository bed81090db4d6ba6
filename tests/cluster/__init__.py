"""Jobs on real clusters, made of daemons and networks of this machine; most need root."""
