"""Which files pytest collects."""


def pytest_ignore_collect(collection_path):
    """A module without an example has no doctest, and importing all of them took seconds of every worker."""
    if collection_path.suffix != ".py" or collection_path.name.startswith("test_"):
        return None
    return ">>>" not in collection_path.read_text(encoding="utf-8") or None
