//! DaViT, text transformer, UniCL, adapter, weights.
