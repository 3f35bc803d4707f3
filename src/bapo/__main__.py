"""The `bapo` command, and `python -m bapo`; signals are met before what takes time is imported."""

from bapo.stopped import meet_signals

meet_signals()

from bapo.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
