"""Examples: where they come from, what they hold and how they are batched."""
