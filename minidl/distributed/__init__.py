"""The room `distributed`."""
