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

use std::ops::Range;

use super::decode::RgbImage;
#[cfg(target_arch = "x86_64")]
use super::resize_avx2 as avx2;
use crate::error::{Error, Result};

/// Fractional bits of the weights: a byte, the sign and one bit for overshoot leave 22 of 32.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;
pub(super) const HALF: i32 = 1 << (PRECISION_BITS - 1);
const SUPPORT: f64 = 2.0;
/// Bytes of a row that the vertical pass sums up at a time: as many sums as fit in registers. Shorter rows are not for wide registers.
pub(super) const BLOCK: usize = 32;

/// Resizes the whole image to `width` x `height` pixels. A side of 0 is taken as 1.
#[must_use]
pub fn resize_bicubic(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let whole = [0.0, 0.0, image.width() as f32, image.height() as f32];
    resize(&View::of(image), whole, width.max(1), height.max(1))
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
    Ok(resize(&View::of(image), region.map(|v| v as f32), width, height))
}

/// Cuts the rectangle `crop` (x, y, width, height) out and resizes it: [`RgbImage::crop`] and [`resize_bicubic`] without
/// the copy between them.
///
/// # Errors
/// `Data` when the rectangle is empty or leaves the image.
pub fn resize_cropped(image: &RgbImage, crop: [usize; 4], width: usize, height: usize) -> Result<RgbImage> {
    let view = View::cropped(image, crop)?;
    let whole = [0.0, 0.0, view.width as f32, view.height as f32];
    Ok(resize(&view, whole, width.max(1), height.max(1)))
}

/// A rectangle of an image.
pub(super) struct View<'a> {
    /// From its first pixel to the image's last.
    pub(super) pixels: &'a [u8],
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    width: usize,
    height: usize,
}

impl<'a> View<'a> {
    fn of(image: &'a RgbImage) -> View<'a> {
        View { pixels: image.pixels(), stride: image.width() * 3, width: image.width(), height: image.height() }
    }

    fn cropped(image: &'a RgbImage, [x, y, width, height]: [usize; 4]) -> Result<View<'a>> {
        image.check_crop([x, y, width, height])?;
        let stride = image.width() * 3;
        Ok(View { pixels: &image.pixels()[y * stride + x * 3..], stride, width, height })
    }

    pub(super) fn row(&self, y: usize) -> &'a [u8] {
        &self.pixels[y * self.stride..][..self.width * 3]
    }

    /// A copy of some rows.
    fn rows(&self, needed: Range<usize>) -> Vec<u8> {
        let mut pixels = Vec::with_capacity(needed.len() * self.width * 3);
        needed.for_each(|y| pixels.extend_from_slice(self.row(y)));
        pixels
    }
}

fn resize(view: &View<'_>, region: [f32; 4], width: usize, height: usize) -> RgbImage {
    let [x0, y0, x1, y1] = region;
    let passes = Passes {
        columns: Kernel::new(view.width, x0, x1, width),
        rows: Kernel::new(view.height, y0, y1, height),
        horizontal: width != view.width || x0 != 0.0 || x1 != width as f32,
        vertical: height != view.height || y0 != 0.0 || y1 != height as f32,
    };
    RgbImage { width, height, pixels: passes.run(view) }
}

/// The two passes of one resize. A pass that changes nothing is left out.
struct Passes {
    columns: Kernel,
    rows: Kernel,
    horizontal: bool,
    vertical: bool,
}

impl Passes {
    fn run(&self, view: &View<'_>) -> Vec<u8> {
        self.run_in(view, true)
    }

    /// In wide registers, where that is allowed, the processor has them, and a row of the output fills one; or without.
    fn run_in(&self, view: &View<'_>, allowed: bool) -> Vec<u8> {
        let wide = allowed && wide_registers() && self.columns.len() * 3 >= BLOCK;
        let needed = if self.vertical { self.rows.input_range() } else { 0..view.height };
        let (first, width) = (needed.start, self.columns.len() * 3);
        let pixels = if self.horizontal { resize_rows(view, needed, &self.columns, wide) } else { view.rows(needed) };
        if self.vertical { resize_columns(&pixels, [width, first], &self.rows, wide) } else { pixels }
    }
}

/// Whether the processor has the instructions that the passes in wide registers are made of.
fn wide_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// For each output position the inputs that it reads and their weights.
pub(super) struct Kernel {
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

    /// Outputs.
    pub(super) fn len(&self) -> usize {
        self.bounds.len()
    }

    /// The most inputs that an output has.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn most_inputs(&self) -> usize {
        self.bounds.iter().map(|&(_, count)| count).max().unwrap_or(0)
    }

    /// The inputs that any output reads.
    fn input_range(&self) -> Range<usize> {
        let first = self.bounds.first().map_or(0, |b| b.0);
        let end = self.bounds.last().map_or(0, |b| b.0 + b.1);
        first..end
    }

    /// For each output: its first input and its weights.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (usize, &[i32])> {
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

/// The horizontal pass over some rows.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn resize_rows(view: &View<'_>, needed: Range<usize>, kernel: &Kernel, wide: bool) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if wide {
        // SAFETY: the processor has the instructions
        return unsafe { avx2::resize_rows(view, needed, kernel) };
    }
    let width = kernel.len() * 3;
    let mut pixels = vec![0; needed.len() * width];
    // one byte more, since a pixel is read as four bytes
    let mut line = vec![0; view.width * 3 + 1];
    for (output, y) in pixels.chunks_exact_mut(width).zip(needed) {
        line[..view.width * 3].copy_from_slice(view.row(y));
        for ((first, weights), pixel) in kernel.outputs().zip(output.chunks_exact_mut(3)) {
            let inputs = &line[first * 3..(first + weights.len()) * 3 + 1];
            let mut sums = [HALF; 4];
            for (bytes, &weight) in inputs.windows(4).step_by(3).zip(weights) {
                for (sum, &byte) in sums.iter_mut().zip(bytes) {
                    *sum += i32::from(byte) * weight;
                }
            }
            let bytes = sums.map(to_byte);
            pixel.copy_from_slice(&bytes[..3]);
        }
    }
    pixels
}

/// The vertical pass. `pixels` have rows of `stride` bytes and begin at input row `first`. Sums up a block of columns at a time, so that the sums stay in registers.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn resize_columns(pixels: &[u8], [stride, first]: [usize; 2], kernel: &Kernel, wide: bool) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if wide {
        // SAFETY: the processor has the instructions
        return unsafe { avx2::resize_columns(pixels, stride, first, kernel) };
    }
    let mut output = vec![0; stride * kernel.len()];
    for ((start, weights), row) in kernel.outputs().zip(output.chunks_exact_mut(stride)) {
        let inputs = &pixels[(start - first) * stride..];
        for (block, out) in row.chunks_mut(BLOCK).enumerate() {
            let mut sums = [HALF; BLOCK];
            for (line, &weight) in inputs.chunks_exact(stride).zip(weights) {
                let bytes = &line[block * BLOCK..][..out.len()];
                for (sum, &byte) in sums.iter_mut().zip(bytes) {
                    *sum += i32::from(byte) * weight;
                }
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = to_byte(sum));
        }
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
    fn a_crop_is_cut_out_before_it_is_resized() {
        let image = RgbImage::new(50, 40, (0..6000).map(|i| (i * 101 % 256) as u8).collect()).unwrap();
        for [x, y, w, h] in [[0, 0, 50, 40], [3, 2, 47, 38], [7, 0, 20, 40], [49, 39, 1, 1], [10, 11, 16, 24]] {
            let copied = resize_bicubic(&image.crop(x, y, w, h).unwrap(), 16, 24);
            assert_eq!(resize_cropped(&image, [x, y, w, h], 16, 24).unwrap(), copied);
        }
        assert!(resize_cropped(&image, [1, 0, 50, 40], 8, 8).is_err());
        assert!(resize_cropped(&image, [1, 0, 0, 40], 8, 8).is_err());
    }

    #[test]
    fn wider_registers_give_the_same_bytes() {
        let image = RgbImage::new(61, 53, (0..61 * 53 * 3).map(|i| (i * 97 % 256) as u8).collect()).unwrap();
        let noise =
            RgbImage::new(61, 53, image.pixels().iter().map(|&v| if v & 4 == 0 { 0 } else { 255 }).collect()).unwrap();
        for image in [image, noise] {
            // of sizes that fill registers and that do not, down to one that is too small for them, and of parts of the image
            for (width, height) in
                [(32, 32), (61, 20), (20, 53), (61, 53), (100, 90), (11, 3), (12, 1), (7, 1), (300, 2)]
            {
                for [x, y, w, h] in [[0, 0, 61, 53], [0, 0, 61, 50], [5, 7, 50, 46], [60, 52, 1, 1], [58, 1, 3, 6]] {
                    let view = View::cropped(&image, [x, y, w, h]).unwrap();
                    // whole, and a region within it
                    for (from, to) in [(0.0, 1.0), (0.3, 0.9)] {
                        let kernel =
                            |side: usize, target| Kernel::new(side, from * side as f32, to * side as f32, target);
                        let whole = from == 0.0;
                        let passes = Passes {
                            columns: kernel(w, width),
                            rows: kernel(h, height),
                            horizontal: !whole || width != w,
                            vertical: !whole || height != h,
                        };
                        let plain = passes.run_in(&view, false);
                        assert!(passes.run(&view) == plain, "{width} x {height} of {w} x {h} from {from}");
                    }
                }
            }
        }
        // so many inputs for each output that a sum of low parts alone wraps
        for value in [|_| 255, |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8] {
            let long = RgbImage::new(60_000, 1, (0..180_000).map(value).collect()).unwrap();
            let passes = Passes {
                columns: Kernel::new(60_000, 0.0, 60_000.0, 12),
                rows: Kernel::new(1, 0.0, 1.0, 1),
                horizontal: true,
                vertical: false,
            };
            assert!(passes.run(&View::of(&long)) == passes.run_in(&View::of(&long), false));
        }
    }

    #[test]
    fn region_outside_the_image_is_refused() {
        let image = RgbImage::new(3, 2, vec![0; 18]).unwrap();
        assert!(resize_bicubic_box(&image, [0.0, 0.0, 4.0, 2.0], 2, 2).is_err());
        assert!(resize_bicubic_box(&image, [1.0, 0.0, 1.0, 2.0], 2, 2).is_err());
        assert!(resize_bicubic_box(&image, [0.5, f64::NAN, 2.0, 2.0], 2, 2).is_err());
    }
}
