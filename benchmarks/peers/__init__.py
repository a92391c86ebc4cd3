"""An RFT step of ours beside TRL's and Tunix's, each in an environment of its own."""
