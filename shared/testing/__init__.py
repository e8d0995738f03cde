"""Programs and fakes for tests and demos; never on the default path."""
