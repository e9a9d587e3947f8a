"""Where information goes in a network, layer by layer."""
