"""The demo: tiny models trained on the spot (`models`), and what it makes of them (`story`)."""
