"""`python -m mlup_stream` is `mlup-stream`."""

from mlup_stream.cli.main import main

if __name__ == "__main__":
    main()
