//! Batched encoding of images and texts.
