//! Antialiased bicubic resizing, byte for byte as Pillow's `Image.resize(size, Image.BICUBIC)`.
//!
//! Like Pillow: a kernel with a = -0.5 that widens when shrinking, weights normalised in f64 and then rounded to 22-bit
//! fixed point, a horizontal pass over the needed rows only, rounded to bytes, then a vertical pass; a pass that changes
//! nothing is skipped.
//!
//! The order of the passes is that of Pillow up to version 12, always. Version 13 begins with the vertical pass when the
//! height shrinks by more pixels than twice the width does, and so gives other bytes for tall images. Python code that
//! must agree with this module under every version resizes one axis at a time: first to (width, old height), then to
//! (width, height).

use std::borrow::Cow;

use super::decode::RgbImage;
use crate::error::{Error, Result};

/// Fractional bits of the weights: a byte, the sign and one bit for overshoot leave 22 of 32.
const PRECISION_BITS: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION_BITS - 1);
const SUPPORT: f64 = 2.0;

/// Resizes the whole image to `width` x `height` pixels. A side of 0 is taken as 1.
#[must_use]
pub fn resize_bicubic(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let whole = [0.0, 0.0, image.width() as f32, image.height() as f32];
    resize(image, whole, width.max(1), height.max(1))
}

/// Resizes the part of the image within `region` (x0, y0, x1, y1; in pixels, fractions allowed), as Pillow's
/// `resize(size, BICUBIC, box=region)`. Pixels around the region take part, unlike after a crop.
///
/// # Errors
/// `Data` when the region is empty or leaves the image, or a side is 0.
pub fn resize_bicubic_box(image: &RgbImage, region: [f64; 4], width: usize, height: usize) -> Result<RgbImage> {
    let [x0, y0, x1, y1] = region;
    let inside = x0 >= 0.0 && y0 >= 0.0 && x1 <= image.width() as f64 && y1 <= image.height() as f64;
    if !(inside && x1 > x0 && y1 > y0) || width == 0 || height == 0 {
        return Err(Error::data(format!(
            "the region {region:?} of an image of {} x {} pixels cannot be resized to {width} x {height}",
            image.width(),
            image.height()
        )));
    }
    // Pillow keeps the region in single precision
    Ok(resize(image, region.map(|v| v as f32), width, height))
}

fn resize(image: &RgbImage, [x0, y0, x1, y1]: [f32; 4], width: usize, height: usize) -> RgbImage {
    let horizontal = width != image.width() || x0 != 0.0 || x1 != width as f32;
    let vertical = height != image.height() || y0 != 0.0 || y1 != height as f32;
    let rows = Kernel::new(image.height(), y0, y1, height);
    let stride = image.width() * 3;
    let (mut first, mut pixels) = (0, Cow::Borrowed(image.pixels()));
    if horizontal {
        let columns = Kernel::new(image.width(), x0, x1, width);
        let needed = if vertical { rows.input_range() } else { 0..image.height() };
        first = needed.start;
        pixels = Cow::Owned(resize_rows(&pixels[needed.start * stride..needed.end * stride], stride, &columns));
    }
    if vertical {
        pixels = Cow::Owned(resize_columns(&pixels, width * 3, first, &rows));
    }
    RgbImage { width, height, pixels: pixels.into_owned() }
}

/// For each output position the inputs that it reads and their weights.
struct Kernel {
    /// (first input, number of inputs) of each output.
    bounds: Vec<(usize, usize)>,
    /// `stride` weights for each output, of which the first `bounds.1` count.
    weights: Vec<i32>,
    stride: usize,
}

impl Kernel {
    fn new(input: usize, low: f32, high: f32, output: usize) -> Kernel {
        let scale = f64::from(high - low) / output as f64;
        let stretch = scale.max(1.0);
        let support = SUPPORT * stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut kernel =
            Kernel { bounds: Vec::with_capacity(output), weights: Vec::with_capacity(output * stride), stride };
        let inverse = 1.0 / stretch;
        let mut row = vec![0.0; stride];
        for position in 0..output {
            let center = f64::from(low) + (position as f64 + 0.5) * scale;
            // truncation towards zero, then clamped: as the C code does
            let start = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as i64).clamp(0, input as i64) as usize;
            let count = end.saturating_sub(start).min(stride);
            row.fill(0.0);
            let mut total = 0.0;
            for (x, weight) in row[..count].iter_mut().enumerate() {
                *weight = bicubic(((x + start) as f64 - center + 0.5) * inverse);
                total += *weight;
            }
            if total != 0.0 {
                row[..count].iter_mut().for_each(|w| *w /= total);
            }
            kernel.bounds.push((start, count));
            kernel.weights.extend(row.iter().map(|&w| fixed_point(w)));
        }
        kernel
    }

    /// The inputs that any output reads.
    fn input_range(&self) -> std::ops::Range<usize> {
        let first = self.bounds.first().map_or(0, |b| b.0);
        let end = self.bounds.last().map_or(0, |b| b.0 + b.1);
        first..end
    }

    /// For each output: its first input and its weights.
    fn outputs(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.bounds.iter().zip(self.weights.chunks_exact(self.stride)).map(|(&(first, n), w)| (first, &w[..n]))
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        return ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    }
    if x < 2.0 {
        return (((x - 5.0) * x + 8.0) * x - 4.0) * A;
    }
    0.0
}

fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn resize_rows(pixels: &[u8], stride: usize, kernel: &Kernel) -> Vec<u8> {
    let mut output = Vec::with_capacity(pixels.len() / stride * kernel.bounds.len() * 3);
    for row in pixels.chunks_exact(stride) {
        for (first, weights) in kernel.outputs() {
            let (mut red, mut green, mut blue) = (HALF, HALF, HALF);
            for (pixel, &weight) in row[first * 3..(first + weights.len()) * 3].chunks_exact(3).zip(weights) {
                red += i32::from(pixel[0]) * weight;
                green += i32::from(pixel[1]) * weight;
                blue += i32::from(pixel[2]) * weight;
            }
            output.extend([to_byte(red), to_byte(green), to_byte(blue)]);
        }
    }
    output
}

/// `pixels` begin at input row `first`. Works a whole row at a time, so that the compiler can use vector instructions.
fn resize_columns(pixels: &[u8], stride: usize, first: usize, kernel: &Kernel) -> Vec<u8> {
    let mut output = Vec::with_capacity(stride * kernel.bounds.len());
    let mut sums = vec![HALF; stride];
    for (start, weights) in kernel.outputs() {
        sums.fill(HALF);
        for (row, &weight) in pixels[(start - first) * stride..].chunks_exact(stride).zip(weights) {
            for (sum, &byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(byte) * weight;
            }
        }
        output.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_every_output_sum_to_one() {
        for (input, output) in [(8, 32), (100, 7), (33, 32), (1, 5), (5, 1)] {
            let kernel = Kernel::new(input, 0.0, input as f32, output);
            for (first, weights) in kernel.outputs() {
                let sum: i32 = weights.iter().sum();
                assert!((sum - (1 << PRECISION_BITS)).abs() <= weights.len() as i32);
                assert!(first + weights.len() <= input);
            }
        }
    }

    #[test]
    fn same_size_is_a_copy_and_constant_stays_constant() {
        let image = RgbImage::new(3, 2, (0..18).collect()).unwrap();
        assert_eq!(resize_bicubic(&image, 3, 2), image);
        let grey = RgbImage::new(5, 4, vec![77; 60]).unwrap();
        assert!(resize_bicubic(&grey, 17, 3).pixels().iter().all(|&v| v == 77));
    }

    #[test]
    fn region_outside_the_image_is_refused() {
        let image = RgbImage::new(3, 2, vec![0; 18]).unwrap();
        assert!(resize_bicubic_box(&image, [0.0, 0.0, 4.0, 2.0], 2, 2).is_err());
        assert!(resize_bicubic_box(&image, [1.0, 0.0, 1.0, 2.0], 2, 2).is_err());
        assert!(resize_bicubic_box(&image, [0.5, f64::NAN, 2.0, 2.0], 2, 2).is_err());
    }
}
