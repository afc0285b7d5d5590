"""From a trained run to traffic: exports artifacts and verifies them."""
