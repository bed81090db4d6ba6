"""`python -m tools.benchmark`, the same as `torchrec-xd benchmark`."""

from torchrec_xd.benchmark.__main__ import main

if __name__ == "__main__":
    main()
