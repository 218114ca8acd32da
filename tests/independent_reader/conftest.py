"""Nothing in this folder is a test; tests/codec/test_independent_reader.py loads it as a package of its own."""

collect_ignore_glob = ["*.py"]
