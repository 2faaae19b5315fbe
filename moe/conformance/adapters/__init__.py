"""The built-in adapters: this package and what others do."""
