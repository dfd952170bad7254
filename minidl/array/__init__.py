"""The room `array`."""
