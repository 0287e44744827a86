//! Affine transforms that keep an image's size, byte for byte as Pillow's `Image.transform` and `Image.rotate`. What comes
//! from outside the image is black.

use super::decode::RgbImage;

/// From a pixel of the result to its source: x = m0 x' + m1 y' + m2, y = m3 x' + m4 y' + m5, with pixel centres at halves.
pub(super) type Matrix = [f64; 6];

/// Shears by `x` along the rows and by `y` along the columns about the upper left corner (one of them 0), as torchvision's
/// TrivialAugment does.
pub(super) fn shear(x: f64, y: f64) -> Matrix {
    // torchvision's detour over degrees, which can differ from the plain number in the last bit
    let angle = |level: f64| level.atan().to_degrees().to_radians();
    let (x, y) = (angle(x), angle(y));
    [1.0, x.tan(), 0.0, y.sin() / y.cos(), 1.0, 0.0]
}

/// Moves by whole pixels, to the right and down.
pub(super) fn translation(x: f64, y: f64) -> Matrix {
    [1.0, 0.0, -x.trunc(), 0.0, 1.0, -y.trunc()]
}

/// Turns by `degrees` counter-clockwise about the centre of an image of `width` x `height` pixels.
pub(super) fn rotation(width: usize, height: usize, degrees: f64) -> Matrix {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let (cos, sin) = (round_15(angle.cos()), round_15(angle.sin()));
    let (cx, cy) = (width as f64 / 2.0, height as f64 / 2.0);
    let x = cos * -cx + sin * -cy + 0.0;
    let y = -sin * -cx + cos * -cy + 0.0;
    [cos, sin, x + cx, -sin, cos, y + cy]
}

/// Turns by `degrees` counter-clockwise about the centre, interpolating linearly: torchvision's `rotate` with bilinear
/// interpolation. The corners that come into view are black.
#[must_use]
pub fn rotate(image: &RgbImage, degrees: f64) -> RgbImage {
    bilinear(image, &rotation(image.width(), image.height(), degrees))
}

/// Python's `round(value, 15)`: makes quarter turns exact.
fn round_15(value: f64) -> f64 {
    format!("{value:.15}").parse().unwrap_or(value)
}

/// Takes each pixel from the source pixel that it falls into, in 16.16 fixed point.
pub(super) fn nearest(image: &RgbImage, matrix: &Matrix) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let [a, b, c, d, e, f] = *matrix;
    let (step_x, step_y) = (fixed(a), fixed(d));
    let (next_x, next_y) = (fixed(b), fixed(e));
    let mut row_start = (fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5));
    let mut pixels = vec![0; image.pixels().len()];
    for row in pixels.chunks_exact_mut(width * 3) {
        let (mut x, mut y) = row_start;
        for pixel in row.chunks_exact_mut(3) {
            // a negative number becomes a huge one
            let (column, line) = ((x >> 16) as usize, (y >> 16) as usize);
            if column < width && line < height {
                let at = (line * width + column) * 3;
                pixel.copy_from_slice(&image.pixels()[at..at + 3]);
            }
            x += step_x;
            y += step_y;
        }
        row_start.0 += next_x;
        row_start.1 += next_y;
    }
    RgbImage { width, height, pixels }
}

/// Interpolates each pixel between the four source pixels around it; the fraction of a level is cut off.
fn bilinear(image: &RgbImage, matrix: &Matrix) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let [a, b, c, d, e, f] = *matrix;
    let mut pixels = vec![0; image.pixels().len()];
    for (line, row) in pixels.chunks_exact_mut(width * 3).enumerate() {
        let y_out = line as f64 + 0.5;
        for (column, pixel) in row.chunks_exact_mut(3).enumerate() {
            let x_out = column as f64 + 0.5;
            let (x, y) = (a * x_out + b * y_out + c, d * x_out + e * y_out + f);
            if !(x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64) {
                continue;
            }
            let ((left, dx), (top, dy)) = (split(x - 0.5), split(y - 0.5));
            let (upper, lower) = (pair(image, left, top), pair(image, left, top + 1));
            for channel in 0..3 {
                let along = |pair: &[u8; 6]| between(f64::from(pair[channel]), f64::from(pair[channel + 3]), dx);
                pixel[channel] = between(along(&upper), along(&lower), dy) as u8;
            }
        }
    }
    RgbImage { width, height, pixels }
}

/// The whole number under `value` and what is left; without `floor`, which is a function call on older processors.
fn split(value: f64) -> (isize, f64) {
    let whole = value as isize;
    let whole = if value < whole as f64 { whole - 1 } else { whole };
    (whole, value - whole as f64)
}

/// The pixel at (`x`, `y`) and the one on its right. At the border the nearest pixel stands for one that is missing.
fn pair(image: &RgbImage, x: isize, y: isize) -> [u8; 6] {
    let y = y.clamp(0, image.height() as isize - 1) as usize;
    let row = &image.pixels()[y * image.width() * 3..][..image.width() * 3];
    if x >= 0
        && let Some(both) = row[x as usize * 3..].first_chunk()
    {
        return *both;
    }
    // the first or the last pixel, twice
    let at = x.max(0) as usize * 3;
    [row[at], row[at + 1], row[at + 2], row[at], row[at + 1], row[at + 2]]
}

fn between(from: f64, to: f64, share: f64) -> f64 {
    from + (to - from) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> RgbImage {
        RgbImage::new(width, height, (0..width * height * 3).map(|i| (i * 37 % 253 + 1) as u8).collect()).unwrap()
    }

    #[test]
    fn quarter_and_half_turns_move_whole_pixels() {
        let image = picture(5, 5);
        for filter in [nearest, bilinear] {
            let quarter = filter(&image, &rotation(5, 5, 90.0));
            let half = filter(&image, &rotation(5, 5, -180.0));
            for (y, x) in (0..25).map(|i| (i / 5, i % 5)) {
                let at = |x: usize, y: usize| &image.pixels()[(y * 5 + x) * 3..][..3];
                assert_eq!(&quarter.pixels()[(y * 5 + x) * 3..][..3], at(4 - y, x));
                assert_eq!(&half.pixels()[(y * 5 + x) * 3..][..3], at(4 - x, 4 - y));
            }
            assert_eq!(filter(&image, &rotation(5, 5, 360.0)), image);
        }
    }

    #[test]
    fn moved_pictures_leave_black_behind() {
        let image = picture(6, 4);
        let moved = nearest(&image, &translation(2.9, -1.0));
        for (y, x) in (0..24).map(|i| (i / 6, i % 6)) {
            let expected =
                if x >= 2 && y < 3 { image.pixels()[((y + 1) * 6 + x - 2) * 3..][..3].to_vec() } else { vec![0; 3] };
            assert_eq!(moved.pixels()[(y * 6 + x) * 3..][..3], expected);
        }
        assert!(nearest(&image, &translation(6.0, 0.0)).pixels().iter().all(|&v| v == 0));
    }
}
