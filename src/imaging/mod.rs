//! From encoded bytes to normalised pixels: the one pixel path.
//!
//! Training, embedding, evaluation and prediction read pixels through this module and nowhere else. For JPEG and PNG input
//! (RGB and grey) every step gives the same bytes as Pillow: decoding and encoding are libjpeg-turbo's accurate integer
//! transform, resizing repeats Pillow's fixed-point arithmetic, and normalisation is done in f32 in the order in which
//! torch and numpy do it. So scores computed here and in the Python package can be compared at rounding error.

/// Raised whenever the pixels of some image change, or an image is read that was refused before: embeddings of another number are
/// not taken over.
pub const PIXELS_VERSION: u32 = 1;

pub mod augment;
pub mod decode;
pub mod geometry;
#[cfg(test)]
mod golden;
mod jpeg;
pub mod mix;
pub mod operation;
pub mod pixels;
pub mod resize;
#[cfg(target_arch = "x86_64")]
mod resize_avx2;
pub mod rng;
pub mod standardise;
mod tiff;
pub mod trivial;

pub use augment::{Augmentation, load_training};
pub use decode::{RgbImage, check_image, decode};
pub use mix::Mix;
pub use operation::Operation;
pub use pixels::PixelContract;
pub use resize::{resize_bicubic, resize_bicubic_box, resize_cropped};
pub use rng::SampleRng;
pub use standardise::{encode_jpeg, standardise};
pub use trivial::TrivialAugment;
