"""Compare losses under one protocol."""
