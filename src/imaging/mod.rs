//! From encoded bytes to normalised pixels: the one pixel path.
