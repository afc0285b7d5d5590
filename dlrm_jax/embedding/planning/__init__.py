"""Which placement each table gets: what each would cost on a device, and a search among them."""
