"""Why this file exists: here alone pytest learns of fixtures for test_pfu.py and tests/ alike."""

pytest_plugins = ["testing.fixtures"]
