"""`python -m torchrec_xd.benchmark`, the same as `torchrec-xd benchmark`."""

from __future__ import annotations

from torchrec_xd.error_boundary import run_command


def main() -> None:
    """Run a command."""

    def commands() -> None:
        from torchrec_xd.benchmark.commands import app  # noqa: PLC0415 - imports torch, for which all must be set

        app()

    run_command(commands)


if __name__ == "__main__":
    main()
