"""The model card of a finished mixture, from its folder alone: `card` renders it, `escaping` keeps what comes from
outside from being anything but text, `naming` leaves out where things lay, `license` finds what licence it can have."""
