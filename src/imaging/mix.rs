//! Mixup and cutmix: a batch mixed with itself in reverse order, as timm's `Mixup` does in its batch mode.
//!
//! One draw holds for the whole batch. Row i is mixed with row B - 1 - i; [`Mix::lambda`] is the share of row i's own label.

use super::rng::SampleRng;
use crate::config::training::Mixup;
use crate::error::{Error, Result};

/// A rectangle of pixels: rows `top..bottom`, columns `left..right`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectangle {
    /// First row.
    pub top: usize,
    /// Row after the last.
    pub bottom: usize,
    /// First column.
    pub left: usize,
    /// Column after the last.
    pub right: usize,
}

impl Rectangle {
    /// timm's cutmix rectangle of an image of `height` x `width` pixels: 1 - `lambda` of the area about the pixel `centre`
    /// (row, column), cut off at the borders.
    #[must_use]
    pub fn around([y, x]: [usize; 2], [height, width]: [usize; 2], lambda: f64) -> Rectangle {
        let ratio = (1.0 - lambda).max(0.0).sqrt();
        let (cut_h, cut_w) = ((height as f64 * ratio) as usize, (width as f64 * ratio) as usize);
        Rectangle {
            top: y.saturating_sub(cut_h / 2),
            bottom: (y + cut_h.div_ceil(2)).min(height),
            left: x.saturating_sub(cut_w / 2),
            right: (x + cut_w.div_ceil(2)).min(width),
        }
    }

    /// 1 minus its share of the area of an image: what lambda becomes.
    #[must_use]
    pub fn lambda(&self, [height, width]: [usize; 2]) -> f64 {
        let area = (self.bottom - self.top) * (self.right - self.left);
        1.0 - area as f64 / (height * width) as f64
    }
}

/// How one batch is mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// Share of a row's own image and label, 0 to 1.
    pub lambda: f64,
    /// The part that is replaced by the partner's (cutmix); without it the images are averaged (mixup).
    pub cut: Option<Rectangle>,
}

impl Mix {
    /// Draws for one batch of images of [height, width] pixels; `None` leaves it as it is.
    pub fn draw(settings: &Mixup, size: [usize; 2], rng: &mut SampleRng) -> Option<Mix> {
        if !rng.chance(settings.probability) {
            return None;
        }
        let cutmix_alpha = if settings.cutmix_minmax.is_some() { 1.0 } else { settings.cutmix_alpha };
        let switch = rng.chance(settings.switch_probability);
        let cutmix = cutmix_alpha > 0.0 && (switch || settings.mixup_alpha <= 0.0);
        let alpha = if cutmix { cutmix_alpha } else { settings.mixup_alpha };
        if alpha <= 0.0 {
            return None;
        }
        let lambda = beta(alpha, rng);
        if !cutmix {
            return Some(Mix { lambda, cut: None });
        }
        let rectangle = match settings.cutmix_minmax {
            Some(range) => anywhere(range, size, rng),
            None => Rectangle::around([rng.below(size[0]), rng.below(size[1])], size, lambda),
        };
        Some(Mix { lambda: rectangle.lambda(size), cut: Some(rectangle) })
    }

    /// Mixes `pixels` [B, 3, height, width] in place.
    ///
    /// # Errors
    /// `Internal` when they are no whole number of images, or the rectangle leaves them.
    pub fn apply(&self, pixels: &mut [f32], [height, width]: [usize; 2]) -> Result<()> {
        let image = 3 * height * width;
        let fits =
            self.cut.is_none_or(|c| c.top <= c.bottom && c.bottom <= height && c.left <= c.right && c.right <= width);
        if image == 0 || !pixels.len().is_multiple_of(image) || !fits {
            return Err(Error::internal(format!(
                "{} values of images of {height} x {width} pixels cannot be mixed by {self:?}",
                pixels.len()
            )));
        }
        let (upper, lower) = pixels.split_at_mut(pixels.len() / image / 2 * image);
        // of an odd number of images the middle one is its own partner, and stays
        let skip = lower.len() - upper.len();
        for (one, other) in upper.chunks_exact_mut(image).zip(lower[skip..].chunks_exact_mut(image).rev()) {
            match self.cut {
                None => average(one, other, self.lambda),
                Some(cut) => swap(one, other, (cut, width, height)),
            }
        }
        Ok(())
    }
}

/// The rounding of timm: two products, then a sum, each in single precision.
fn average(one: &mut [f32], other: &mut [f32], lambda: f64) {
    let (own, partner) = (lambda as f32, (1.0 - lambda) as f32);
    for (a, b) in one.iter_mut().zip(other) {
        (*a, *b) = (*a * own + *b * partner, *b * own + *a * partner);
    }
}

fn swap(one: &mut [f32], other: &mut [f32], (cut, width, height): (Rectangle, usize, usize)) {
    for (a, b) in one.chunks_exact_mut(width * height).zip(other.chunks_exact_mut(width * height)) {
        for row in cut.top..cut.bottom {
            let part = row * width + cut.left..row * width + cut.right;
            a[part.clone()].swap_with_slice(&mut b[part]);
        }
    }
}

/// timm's other rectangle: each side within a share of the image's side, anywhere inside.
fn anywhere([low, high]: [f64; 2], [height, width]: [usize; 2], rng: &mut SampleRng) -> Rectangle {
    let mut side = |length: usize| {
        let (low, high) = ((length as f64 * low) as usize, (length as f64 * high) as usize);
        (low + rng.below(high.saturating_sub(low))).min(length)
    };
    let (cut_h, cut_w) = (side(height), side(width));
    let (top, left) = (rng.below(height - cut_h + 1), rng.below(width - cut_w + 1));
    Rectangle { top, bottom: top + cut_h, left, right: left + cut_w }
}

/// A number of the distribution Beta(alpha, alpha).
fn beta(alpha: f64, rng: &mut SampleRng) -> f64 {
    // as logarithms, since for a small alpha both gammas can be too small for any number
    let (x, y) = (log_gamma_variate(alpha, rng), log_gamma_variate(alpha, rng));
    1.0 / (1.0 + (y - x).exp())
}

/// The logarithm of a number of the distribution Gamma(alpha, 1): Marsaglia and Tsang's method, for `alpha` under 1 that of
/// `alpha` + 1 times a power.
fn log_gamma_variate(alpha: f64, rng: &mut SampleRng) -> f64 {
    let boost = if alpha < 1.0 { (1.0 - rng.unit()).ln() / alpha } else { 0.0 };
    let d = if alpha < 1.0 { alpha + 1.0 } else { alpha } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return boost + d.ln() + v.ln();
        }
    }
}

/// A number of the standard normal distribution (Box and Muller).
fn normal(rng: &mut SampleRng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.unit()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Mixup {
        Mixup { probability: 1.0, mixup_alpha: 0.8, cutmix_alpha: 1.0, cutmix_minmax: None, switch_probability: 0.5 }
    }

    fn draws(settings: &Mixup, count: u64) -> Vec<Mix> {
        (0..count).filter_map(|n| Mix::draw(settings, [20, 30], &mut SampleRng::new(1, 0, n))).collect()
    }

    #[test]
    fn rows_are_mixed_with_the_row_opposite() {
        let batch: Vec<f32> = (0..3).flat_map(|n| vec![n as f32 + 1.0; 3 * 2 * 2]).collect();
        let mut mixed = batch.clone();
        Mix { lambda: 0.75, cut: None }.apply(&mut mixed, [2, 2]).unwrap();
        let values: Vec<f32> = mixed.chunks(12).map(|image| image[0]).collect();
        assert_eq!(values, [1.5, 2.0, 2.5]);
        let mut mixed = batch.clone();
        let cut = Some(Rectangle { top: 1, bottom: 2, left: 0, right: 1 });
        Mix { lambda: 0.75, cut }.apply(&mut mixed, [2, 2]).unwrap();
        assert_eq!(mixed[..12], [1.0, 1.0, 3.0, 1.0].repeat(3));
        assert_eq!(mixed[24..], [3.0, 3.0, 1.0, 3.0].repeat(3));
        assert!(Mix { lambda: 0.5, cut: None }.apply(&mut mixed[1..], [2, 2]).is_err());
        let outside = Some(Rectangle { top: 0, bottom: 3, left: 0, right: 1 });
        assert!(Mix { lambda: 0.5, cut: outside }.apply(&mut mixed, [2, 2]).is_err());
    }

    #[test]
    fn settings_choose_between_mixup_cutmix_and_nothing() {
        assert_eq!(draws(&Mixup { probability: 0.0, ..settings() }, 50).len(), 0);
        let half = draws(&Mixup { probability: 0.5, ..settings() }, 2000).len();
        assert!((900..1100).contains(&half), "{half}");
        let cut =
            draws(&Mixup { switch_probability: 0.25, ..settings() }, 2000).iter().filter(|m| m.cut.is_some()).count();
        assert!((430..570).contains(&cut), "{cut}");
        assert!(
            draws(&Mixup { mixup_alpha: 0.0, switch_probability: 0.0, ..settings() }, 50)
                .iter()
                .all(|m| m.cut.is_some())
        );
        assert!(
            draws(&Mixup { cutmix_alpha: 0.0, switch_probability: 1.0, ..settings() }, 50)
                .iter()
                .all(|m| m.cut.is_none())
        );
    }

    #[test]
    fn rectangles_stay_inside_and_say_their_share() {
        let minmax = Mixup { cutmix_minmax: Some([0.2, 0.8]), switch_probability: 1.0, ..settings() };
        for mix in draws(&minmax, 500) {
            let cut = mix.cut.unwrap();
            assert!(cut.bottom <= 20 && cut.right <= 30);
            assert!((4..16).contains(&(cut.bottom - cut.top)) && (6..24).contains(&(cut.right - cut.left)));
        }
        let usual = Mixup { switch_probability: 1.0, ..settings() };
        for mix in draws(&usual, 500) {
            let cut = mix.cut.unwrap();
            let replaced = (cut.bottom - cut.top) * (cut.right - cut.left);
            assert!((mix.lambda - (1.0 - replaced as f64 / 600.0)).abs() < 1e-12);
        }
        let corner = Rectangle::around([0, 29], [20, 30], 0.75);
        assert_eq!(corner, Rectangle { top: 0, bottom: 5, left: 22, right: 30 });
    }

    /// The distribution itself is compared with SciPy's in tests/python/test_augment.py.
    #[test]
    fn any_alpha_gives_a_share() {
        for alpha in [1e-3, 0.01, 0.2, 1.0, 5.0, 1e4] {
            let values: Vec<f64> = (0..400).map(|n| beta(alpha, &mut SampleRng::new(9, 0, n))).collect();
            assert!(values.iter().all(|v| (0.0..=1.0).contains(v)), "{alpha}");
            let mean = values.iter().sum::<f64>() / 400.0;
            assert!((mean - 0.5).abs() < 0.1, "{alpha}: {mean}");
        }
    }
}
