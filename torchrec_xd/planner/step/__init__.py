"""The whole training step: what its dense part computes, how long each part takes, how that grows with the ranks."""
