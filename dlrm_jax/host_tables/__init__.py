"""Tables whose rows lie in the host's memory, with a cache of hot rows on the devices."""
