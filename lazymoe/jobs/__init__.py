"""The same on a machine that is rented by the minute: what is wanted (`orders`), on which machine and at what price
(`offer`), what is sent to it (`parcel`), what runs there (`there`; for a mixture on the Hub `published`), and to follow
it from here (`renting`). `calls` are the functions for all that."""
