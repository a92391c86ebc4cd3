"""The SFT and RFT loops."""
