"""The same merge on a machine that is rented by the minute: which one and at what price (`offer`), what is sent to it
(`parcel`), what runs there (`there`), and to follow it from here (`renting`)."""
