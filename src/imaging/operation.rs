//! The 14 operations of TrivialAugment, byte for byte as torchvision applies them to Pillow images.

use super::decode::RgbImage;
use super::geometry;

/// Magnitudes of an operation, numbered from 0.
pub const BINS: usize = 31;

/// Red, green and blue of each input byte.
type Tables = [[u8; 256]; 3];

/// One operation, with torchvision's name and meaning of its magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Leaves the image as it is.
    Identity,
    /// Shears along the rows by `magnitude` pixels a row.
    ShearX,
    /// Shears along the columns by `magnitude` pixels a column.
    ShearY,
    /// Moves to the right by whole pixels.
    TranslateX,
    /// Moves down by whole pixels.
    TranslateY,
    /// Turns counter-clockwise by degrees.
    Rotate,
    /// Away from black (over 0) or towards it.
    Brightness,
    /// Away from grey (over 0) or towards it.
    Color,
    /// Away from the mean brightness (over 0) or towards it.
    Contrast,
    /// Away from the smoothed image (over 0) or towards it.
    Sharpness,
    /// Keeps this many of the 8 bits of each value.
    Posterize,
    /// Inverts values from this one on.
    Solarize,
    /// Stretches each channel to the full range.
    AutoContrast,
    /// Makes the histogram of each channel flat.
    Equalize,
}

impl Operation {
    /// All of them, in the order in which torchvision draws.
    pub const ALL: [Operation; 14] = [
        Operation::Identity,
        Operation::ShearX,
        Operation::ShearY,
        Operation::TranslateX,
        Operation::TranslateY,
        Operation::Rotate,
        Operation::Brightness,
        Operation::Color,
        Operation::Contrast,
        Operation::Sharpness,
        Operation::Posterize,
        Operation::Solarize,
        Operation::AutoContrast,
        Operation::Equalize,
    ];

    /// The operation with torchvision's name for it, such as `ShearX`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Operation> {
        Operation::ALL.into_iter().find(|operation| format!("{operation:?}") == name)
    }

    /// Whether the sign of its magnitude is drawn too.
    #[must_use]
    pub fn is_signed(self) -> bool {
        use Operation::*;
        matches!(self, ShearX | ShearY | TranslateX | TranslateY | Rotate | Brightness | Color | Contrast | Sharpness)
    }

    /// The magnitude of a bin, 0 to [`BINS`] - 1 (a higher one counts as the last), before its sign. Single precision, as
    /// torchvision's tables are.
    #[must_use]
    pub fn magnitude(self, bin: usize) -> f64 {
        use Operation::*;
        let bin = bin.min(BINS - 1);
        match self {
            Identity | AutoContrast | Equalize => 0.0,
            ShearX | ShearY | Brightness | Color | Contrast | Sharpness => linear(0.0, 0.99, bin),
            TranslateX | TranslateY => linear(0.0, 32.0, bin),
            Rotate => linear(0.0, 135.0, bin),
            Posterize => 8.0 - (bin as f64 / ((BINS - 1) as f64 / 6.0)).round_ties_even(),
            Solarize => linear(255.0, 0.0, bin),
        }
    }

    /// Applies the operation with any magnitude. `Posterize` keeps at least 1 bit and at most 8.
    #[must_use]
    pub fn apply(self, image: RgbImage, magnitude: f64) -> RgbImage {
        use Operation::*;
        let factor = (1.0 + magnitude) as f32;
        match self {
            Identity => image,
            ShearX => geometry::nearest(&image, &geometry::shear(magnitude, 0.0)),
            ShearY => geometry::nearest(&image, &geometry::shear(0.0, magnitude)),
            TranslateX => geometry::nearest(&image, &geometry::translation(magnitude, 0.0)),
            TranslateY => geometry::nearest(&image, &geometry::translation(0.0, magnitude)),
            Rotate => {
                let matrix = geometry::rotation(image.width(), image.height(), magnitude);
                geometry::nearest(&image, &matrix)
            }
            Brightness => look_up(image, &same(|value| blend(0, value, factor))),
            Color => saturate(image, factor),
            Contrast => {
                let mean = mean_brightness(&image);
                look_up(image, &same(|value| blend(mean, value, factor)))
            }
            Sharpness => sharpen(&image, factor),
            Posterize => {
                let cut = 8 - (magnitude as i64).clamp(1, 8);
                look_up(image, &same(|value| value >> cut << cut))
            }
            Solarize => look_up(image, &same(|value| if f64::from(value) < magnitude { value } else { 255 - value })),
            AutoContrast => {
                let tables = histograms(&image).map(|counts| stretched(&counts));
                look_up(image, &tables)
            }
            Equalize => {
                let tables = histograms(&image).map(|counts| equalised(&counts));
                look_up(image, &tables)
            }
        }
    }
}

/// torch.linspace(start, end, BINS) in single precision, which counts from both ends.
fn linear(start: f32, end: f32, bin: usize) -> f64 {
    let step = (end - start) / (BINS - 1) as f32;
    let value = if bin < BINS / 2 { start + step * bin as f32 } else { end - step * (BINS - 1 - bin) as f32 };
    f64::from(value)
}

/// Pillow's blend of two values: a share over 1 goes beyond `to`. The fraction is cut off.
fn blend(from: u8, to: u8, share: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    // over i32, which the compiler has vector instructions for
    (from + share * (to - from)).clamp(0.0, 255.0) as i32 as u8
}

fn same(value: impl Fn(u8) -> u8) -> Tables {
    let mut table = [0; 256];
    table.iter_mut().zip(0..=255).for_each(|(entry, byte)| *entry = value(byte));
    [table; 3]
}

fn look_up(mut image: RgbImage, tables: &Tables) -> RgbImage {
    for pixel in image.pixels.chunks_exact_mut(3) {
        pixel[0] = tables[0][usize::from(pixel[0])];
        pixel[1] = tables[1][usize::from(pixel[1])];
        pixel[2] = tables[2][usize::from(pixel[2])];
    }
    image
}

/// Pillow's conversion to grey (ITU-R 601-2), rounded.
fn grey(pixel: &[u8]) -> u8 {
    let weighted = u32::from(pixel[0]) * 19595 + u32::from(pixel[1]) * 38470 + u32::from(pixel[2]) * 7471;
    ((weighted + 0x8000) >> 16) as u8
}

fn mean_brightness(image: &RgbImage) -> u8 {
    let sum: u64 = image.pixels().chunks_exact(3).map(|pixel| u64::from(grey(pixel))).sum();
    (sum as f64 / (image.width() * image.height()) as f64 + 0.5) as u8
}

fn saturate(mut image: RgbImage, factor: f32) -> RgbImage {
    for pixel in image.pixels.chunks_exact_mut(3) {
        let grey = grey(pixel);
        pixel.iter_mut().for_each(|value| *value = blend(grey, *value, factor));
    }
    image
}

/// Blends with the image smoothed by a 3 x 3 kernel; the outermost pixels stay as they are.
fn sharpen(image: &RgbImage, factor: f32) -> RgbImage {
    const SIDE: f32 = 1.0 / 13.0;
    const CENTRE: f32 = 5.0 / 13.0;
    let (width, height, stride) = (image.width(), image.height(), image.width() * 3);
    let mut pixels = image.pixels().to_vec();
    if width < 3 || height < 3 {
        return RgbImage { width, height, pixels };
    }
    let rows: Vec<&[u8]> = image.pixels().chunks_exact(stride).collect();
    for (out, near) in pixels[stride..].chunks_exact_mut(stride).zip(rows.windows(3)) {
        let inner = stride - 6;
        let out = &mut out[3..3 + inner];
        let [above, here, below] = [near[0], near[1], near[2]].map(|row| Neighbours::of(row, inner));
        for (i, out) in out.iter_mut().enumerate() {
            // Pillow's order of additions: its images stand on their heads
            let mut sum = 0.5 + below.sum(i, SIDE, SIDE);
            sum += here.sum(i, SIDE, CENTRE);
            sum += above.sum(i, SIDE, SIDE);
            *out = blend(sum as i32 as u8, here.middle[i], factor);
        }
    }
    RgbImage { width, height, pixels }
}

/// The inner bytes of a row with the same channel of the pixels on their left and right, in slices of one length.
struct Neighbours<'a> {
    left: &'a [u8],
    middle: &'a [u8],
    right: &'a [u8],
}

impl<'a> Neighbours<'a> {
    #[inline(always)]
    fn of(row: &'a [u8], inner: usize) -> Neighbours<'a> {
        Neighbours { left: &row[..inner], middle: &row[3..3 + inner], right: &row[6..6 + inner] }
    }

    #[inline(always)]
    fn sum(&self, i: usize, side: f32, centre: f32) -> f32 {
        f32::from(self.left[i]) * side + f32::from(self.middle[i]) * centre + f32::from(self.right[i]) * side
    }
}

fn histograms(image: &RgbImage) -> [[usize; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in image.pixels().chunks_exact(3) {
        for (counts, &value) in counts.iter_mut().zip(pixel) {
            counts[usize::from(value)] += 1;
        }
    }
    counts
}

fn stretched(counts: &[usize; 256]) -> [u8; 256] {
    let low = counts.iter().position(|&n| n > 0).unwrap_or(0);
    let high = counts.iter().rposition(|&n| n > 0).unwrap_or(0);
    if high <= low {
        return std::array::from_fn(|value| value as u8);
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
}

fn equalised(counts: &[usize; 256]) -> [u8; 256] {
    let identity = || std::array::from_fn(|value| value as u8);
    let total: usize = counts.iter().sum();
    let last = counts.iter().rfind(|&&n| n > 0).copied().unwrap_or(0);
    let step = (total - last) / 255;
    if step == 0 {
        return identity();
    }
    let mut below = step / 2;
    let mut table = [0; 256];
    for (entry, count) in table.iter_mut().zip(counts) {
        *entry = (below / step).min(255) as u8;
        below += count;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> RgbImage {
        RgbImage::new(9, 7, (0..9 * 7 * 3).map(|i| (i * 89 % 241) as u8).collect()).unwrap()
    }

    #[test]
    fn names_and_bins_are_torchvisions() {
        for operation in Operation::ALL {
            assert_eq!(Operation::from_name(&format!("{operation:?}")), Some(operation));
        }
        assert_eq!(Operation::from_name("Invert"), None);
        assert_eq!((Operation::Posterize.magnitude(0), Operation::Posterize.magnitude(30)), (8.0, 2.0));
        assert_eq!((Operation::Solarize.magnitude(0), Operation::Solarize.magnitude(30)), (255.0, 0.0));
        assert_eq!((Operation::Rotate.magnitude(20), Operation::Rotate.magnitude(99)), (90.0, 135.0));
        assert_eq!(Operation::ShearY.magnitude(30), f64::from(0.99_f32));
        assert_eq!(Operation::ALL.iter().filter(|o| o.is_signed()).count(), 9);
    }

    #[test]
    fn magnitude_zero_changes_nothing_where_it_means_nothing() {
        let image = picture();
        for operation in Operation::ALL.into_iter().filter(|o| o.is_signed()) {
            assert_eq!(operation.apply(image.clone(), 0.0), image, "{operation:?}");
        }
        assert_eq!(Operation::Posterize.apply(image.clone(), 8.0), image);
        assert_eq!(Operation::Solarize.apply(image.clone(), 256.0), image);
    }

    #[test]
    fn flat_pictures_survive() {
        let flat = RgbImage::new(4, 4, vec![200; 48]).unwrap();
        for operation in [Operation::AutoContrast, Operation::Equalize, Operation::Contrast, Operation::Color] {
            assert_eq!(operation.apply(flat.clone(), -0.7), flat, "{operation:?}");
        }
        let tiny = RgbImage::new(2, 1, vec![9; 6]).unwrap();
        for operation in Operation::ALL {
            assert_eq!(operation.apply(tiny.clone(), 0.5).pixels().len(), 6);
        }
    }
}
