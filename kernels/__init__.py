"""Operations at the bottom of the losses: each has a reference, and implementations that may only
be faster or smaller than it."""
