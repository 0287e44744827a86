//! From encoded bytes to normalised pixels: the one pixel path.
//!
//! Training, embedding, evaluation and prediction read pixels through this module and nowhere else. For JPEG and PNG input
//! (RGB and grey) every step gives the same bytes as Pillow: decoding and encoding are libjpeg-turbo's accurate integer
//! transform, resizing repeats Pillow's fixed-point arithmetic, and normalisation is done in f32 in the order in which
//! torch and numpy do it. So scores computed here and in the Python package can be compared at rounding error.

pub mod augment;
pub mod decode;
#[cfg(test)]
mod golden;
mod jpeg;
pub mod pixels;
pub mod resize;
pub mod rng;
pub mod standardise;

pub use augment::{Augmentation, load_training};
pub use decode::{RgbImage, check_image, decode};
pub use pixels::PixelContract;
pub use resize::{resize_bicubic, resize_bicubic_box};
pub use rng::SampleRng;
pub use standardise::{encode_jpeg, standardise};
