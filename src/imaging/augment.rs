//! Training augmentation: a random crop, flips, a rotation, TrivialAugment and erased rectangles, with torchvision's
//! algorithms and distributions, in the order of its classification preset.
//!
//! Every draw comes from the sample's own stream ([`SampleRng`]), so that an image of an epoch looks the same whichever
//! thread or process loads it. All draws are made before the first pixel is touched, in a fixed order; a new one is added
//! behind the others, so that what was drawn before stays as it is.

use serde::{Deserialize, Serialize};

use super::decode::{RgbImage, decode};
use super::geometry;
use super::pixels::PixelContract;
use super::resize::resize_cropped;
use super::rng::SampleRng;
use super::trivial::TrivialAugment;
use crate::error::{Error, Result};

/// How often torchvision draws a rectangle before it falls back.
const TRIES: usize = 10;
const ERASE_SCALE: [f64; 2] = [0.02, 0.33];
const ERASE_RATIO: [f64; 2] = [0.3, 3.3];

/// What is varied in training images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Smallest and largest area of the random crop, as a share of the image.
    pub scale: [f64; 2],
    /// Smallest and largest aspect ratio (width / height) of the random crop.
    pub ratio: [f64; 2],
    /// Probability of mirroring left and right.
    pub hflip: f64,
    /// Probability of mirroring top and bottom.
    pub vflip: f64,
    /// Probability of erasing a rectangle (set to the mean colour).
    pub erase_probability: f64,
    /// Largest angle in degrees that an image is turned by, either way.
    pub rotation: f64,
    /// Whether one random operation of TrivialAugmentWide is applied.
    pub auto_augment: bool,
}

/// Nothing is varied.
impl Default for Augmentation {
    fn default() -> Self {
        Augmentation {
            scale: [1.0, 1.0],
            ratio: [1.0, 1.0],
            hflip: 0.0,
            vflip: 0.0,
            erase_probability: 0.0,
            rotation: 0.0,
            auto_augment: false,
        }
    }
}

impl Augmentation {
    /// Checks ranges and probabilities.
    ///
    /// # Errors
    /// `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        let ordered = |[low, high]: [f64; 2]| low > 0.0 && low <= high && high.is_finite();
        if !ordered(self.scale) || self.scale[1] > 1.0 {
            return Err(Error::config(format!("scale is {:?}; it must be [low, high] within 0 to 1", self.scale)));
        }
        if !ordered(self.ratio) {
            return Err(Error::config(format!("ratio is {:?}; it must be [low, high], both positive", self.ratio)));
        }
        if !(0.0..=180.0).contains(&self.rotation) {
            return Err(Error::config(format!("rotation is {}; it must be within 0 to 180 degrees", self.rotation)));
        }
        let chances = [("hflip", self.hflip), ("vflip", self.vflip), ("erase_probability", self.erase_probability)];
        match chances.iter().find(|(_, p)| !(0.0..=1.0).contains(p)) {
            Some((name, p)) => Err(Error::config(format!("{name} is {p}; it must be within 0 to 1"))),
            None => Ok(()),
        }
    }

    /// Whether every image is taken whole, so that a sample looks the same in every epoch.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        *self == Augmentation::default()
    }
}

/// Loads one training image: decode, random crop resized to the model's input, flips, rotation, TrivialAugment, normalise,
/// erase. `bytes` are a standardised JPEG as image TSVs hold it. Writes [3, height, width] to `out`.
///
/// # Errors
/// `Data` as [`decode`], without the image's name; `Internal` when `out` has another length than the contract's tensor.
pub fn load_training(
    contract: &PixelContract,
    augmentation: &Augmentation,
    bytes: &[u8],
    rng: &mut SampleRng,
    out: &mut [f32],
) -> Result<()> {
    if augmentation.is_identity() {
        return contract.load_standardised(bytes, out);
    }
    let image = decode(bytes)?;
    let plan = Plan::draw(augmentation, &image, contract, rng);
    contract.normalise(&plan.apply(&image, contract)?, out)?;
    if let Some(rectangle) = plan.erase {
        erase(out, contract.width(), rectangle);
    }
    Ok(())
}

/// Everything that is drawn for one image. Rectangles are [x, y, width, height].
struct Plan {
    crop: [usize; 4],
    hflip: bool,
    vflip: bool,
    erase: Option<[usize; 4]>,
    degrees: f64,
    trivial: Option<TrivialAugment>,
}

impl Plan {
    /// The order of the draws is part of what a seed means.
    fn draw(augmentation: &Augmentation, image: &RgbImage, contract: &PixelContract, rng: &mut SampleRng) -> Plan {
        let crop = crop_rectangle(image, augmentation, rng);
        let hflip = rng.chance(augmentation.hflip);
        let vflip = rng.chance(augmentation.vflip);
        let erased = rng.chance(augmentation.erase_probability);
        let erase = if erased { erase_rectangle(contract.height(), contract.width(), rng) } else { None };
        let degrees = rng.uniform(-augmentation.rotation, augmentation.rotation);
        let trivial = augmentation.auto_augment.then(|| TrivialAugment::draw(rng));
        Plan { crop, hflip, vflip, erase, degrees, trivial }
    }

    /// What is done to bytes.
    fn apply(&self, image: &RgbImage, contract: &PixelContract) -> Result<RgbImage> {
        let mut image = resize_cropped(image, self.crop, contract.width(), contract.height())?;
        if self.hflip {
            image.flip_horizontal();
        }
        if self.vflip {
            image.flip_vertical();
        }
        if self.degrees != 0.0 {
            image = geometry::rotate(&image, self.degrees);
        }
        Ok(match self.trivial {
            Some(trivial) => trivial.apply(image),
            None => image,
        })
    }
}

/// Where torchvision's RandomResizedCrop cuts: [x, y, width, height].
fn crop_rectangle(image: &RgbImage, augmentation: &Augmentation, rng: &mut SampleRng) -> [usize; 4] {
    let (width, height) = (image.width(), image.height());
    let area = (width * height) as f64;
    let [low, high] = augmentation.ratio;
    for _ in 0..TRIES {
        let target = area * rng.uniform(augmentation.scale[0], augmentation.scale[1]);
        let ratio = rng.uniform(low.ln(), high.ln()).exp();
        let w = (target * ratio).sqrt().round_ties_even() as usize;
        let h = (target / ratio).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let y = rng.below(height - h + 1);
            let x = rng.below(width - w + 1);
            return [x, y, w, h];
        }
    }
    let actual = width as f64 / height as f64;
    let (w, h) = if actual < low {
        (width, (width as f64 / low).round_ties_even() as usize)
    } else if actual > high {
        ((height as f64 * high).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    [(width - w) / 2, (height - h) / 2, w, h]
}

/// Where torchvision's RandomErasing erases; nowhere when no rectangle fits.
fn erase_rectangle(height: usize, width: usize, rng: &mut SampleRng) -> Option<[usize; 4]> {
    let area = (height * width) as f64;
    for _ in 0..TRIES {
        let target = area * rng.uniform(ERASE_SCALE[0], ERASE_SCALE[1]);
        let ratio = rng.uniform(ERASE_RATIO[0].ln(), ERASE_RATIO[1].ln()).exp();
        let h = (target * ratio).sqrt().round_ties_even() as usize;
        let w = (target / ratio).sqrt().round_ties_even() as usize;
        if h >= height || w >= width {
            continue;
        }
        let y = rng.below(height - h + 1);
        let x = rng.below(width - w + 1);
        return Some([x, y, w, h]);
    }
    None
}

/// Sets a rectangle of `values` [3, height, `width`] to 0, the mean colour.
fn erase(values: &mut [f32], width: usize, [x, y, w, h]: [usize; 4]) {
    let plane = values.len() / 3;
    for plane in values.chunks_exact_mut(plane) {
        plane.chunks_exact_mut(width).skip(y).take(h).for_each(|row| row[x..x + w].fill(0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::super::standardise::encode_jpeg;
    use super::*;

    fn contract() -> PixelContract {
        PixelContract { image_size: [24, 20], mean: [0.5; 3], std: [0.5; 3], ..PixelContract::default() }
    }

    fn picture() -> Vec<u8> {
        let pixels = (0..40 * 30 * 3).map(|i| (i * 7 % 251) as u8 | 1).collect();
        encode_jpeg(&RgbImage::new(40, 30, pixels).unwrap(), 95).unwrap()
    }

    fn load(augmentation: &Augmentation, sample: u64) -> Vec<f32> {
        let mut out = vec![0.0; contract().tensor_len()];
        load_training(&contract(), augmentation, &picture(), &mut SampleRng::new(1, 2, sample), &mut out).unwrap();
        out
    }

    #[test]
    fn no_augmentation_is_the_evaluation_path() {
        let mut expected = vec![0.0; contract().tensor_len()];
        contract().load_standardised(&picture(), &mut expected).unwrap();
        assert_eq!(load(&Augmentation::default(), 3), expected);
        // the whole image through the random path gives the same pixels
        let whole = Augmentation { ratio: [4.0 / 3.0; 2], ..Augmentation::default() };
        assert_eq!(load(&whole, 3), expected);
    }

    #[test]
    fn flips_mirror_the_tensor() {
        let whole = Augmentation { ratio: [4.0 / 3.0; 2], ..Augmentation::default() };
        let plain = load(&whole, 0);
        let mut rows: Vec<Vec<f32>> = plain.chunks(20).map(<[f32]>::to_vec).collect();
        rows.iter_mut().for_each(|row| row.reverse());
        assert_eq!(load(&Augmentation { hflip: 1.0, ..whole.clone() }, 0), rows.concat());
        let planes = plain.chunks(24 * 20).map(|p| p.chunks(20).rev().collect::<Vec<_>>().concat());
        assert_eq!(load(&Augmentation { vflip: 1.0, ..whole.clone() }, 0), planes.collect::<Vec<_>>().concat());
    }

    #[test]
    fn crops_keep_scale_and_ratio_and_repeat_for_a_key() {
        let augmentation = Augmentation { scale: [0.3, 0.6], ratio: [0.75, 1.25], ..Augmentation::default() };
        let image = decode(&picture()).unwrap();
        for sample in 0..500 {
            let [x, y, w, h] = crop_rectangle(&image, &augmentation, &mut SampleRng::new(5, 0, sample));
            assert!(x + w <= 40 && y + h <= 30);
            let (area, ratio) = ((w * h) as f64 / 1200.0, w as f64 / h as f64);
            assert!((0.27..=0.63).contains(&area) && (0.7..=1.33).contains(&ratio), "{area} {ratio}");
        }
        assert_eq!(load(&augmentation, 9), load(&augmentation, 9));
        assert_ne!(load(&augmentation, 9), load(&augmentation, 10));
    }

    #[test]
    fn impossible_crops_fall_back_to_the_centre() {
        let image = RgbImage::new(100, 10, vec![0; 3000]).unwrap();
        let augmentation = Augmentation { scale: [1.0, 1.0], ratio: [0.5, 2.0], ..Augmentation::default() };
        assert_eq!(crop_rectangle(&image, &augmentation, &mut SampleRng::new(0, 0, 0)), [40, 0, 20, 10]);
    }

    #[test]
    fn erasing_zeroes_one_rectangle_in_all_channels() {
        for sample in 0..200 {
            let mut values = vec![1.0; 3 * 24 * 20];
            let rectangle = erase_rectangle(24, 20, &mut SampleRng::new(0, 0, sample)).unwrap();
            erase(&mut values, 20, rectangle);
            let zeros: Vec<usize> = values.chunks(480).map(|p| p.iter().filter(|v| **v == 0.0).count()).collect();
            assert!(zeros[0] == zeros[1] && zeros[1] == zeros[2]);
            let share = zeros[0] as f64 / 480.0;
            assert!((0.01..0.36).contains(&share), "{share}");
        }
    }

    #[test]
    fn new_kinds_of_augmentation_leave_the_other_draws_alone() {
        let base =
            Augmentation { scale: [0.3, 0.9], hflip: 0.5, vflip: 0.5, erase_probability: 0.5, ..Default::default() };
        let more = Augmentation { rotation: 30.0, auto_augment: true, ..base.clone() };
        let image = decode(&picture()).unwrap();
        for sample in 0..100 {
            let plan = |a: &Augmentation| Plan::draw(a, &image, &contract(), &mut SampleRng::new(4, 1, sample));
            let (one, other) = (plan(&base), plan(&more));
            assert_eq!(
                (one.crop, one.hflip, one.vflip, one.erase),
                (other.crop, other.hflip, other.vflip, other.erase)
            );
            assert!(one.degrees == 0.0 && one.trivial.is_none());
            assert!(other.degrees.abs() <= 30.0 && other.degrees != 0.0 && other.trivial.is_some());
        }
    }

    #[test]
    fn rotation_and_operations_change_pixels_in_their_order() {
        let whole = Augmentation { ratio: [4.0 / 3.0; 2], ..Augmentation::default() };
        let plain = load(&whole, 0);
        let turned = Augmentation { rotation: 40.0, ..whole.clone() };
        assert_ne!(load(&turned, 0), plain);
        let both = Augmentation { auto_augment: true, hflip: 1.0, ..turned };
        let image = decode(&picture()).unwrap();
        for sample in 0..40 {
            let plan = Plan::draw(&both, &image, &contract(), &mut SampleRng::new(1, 2, sample));
            let mut expected = crate::imaging::resize_bicubic(&image, 20, 24);
            expected.flip_horizontal();
            let expected = plan.trivial.unwrap().apply(geometry::rotate(&expected, plan.degrees));
            let mut values = vec![0.0; contract().tensor_len()];
            contract().normalise(&expected, &mut values).unwrap();
            assert_eq!(load(&both, sample), values);
        }
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let wrong = Augmentation { hflip: 1.5, ..Augmentation::default() };
        assert!(wrong.validate().unwrap_err().to_string().starts_with("hflip"));
        assert!(Augmentation { scale: [0.9, 0.8], ..Augmentation::default() }.validate().is_err());
        assert!(Augmentation { ratio: [0.0, 1.0], ..Augmentation::default() }.validate().is_err());
        assert!(Augmentation { rotation: 181.0, ..Augmentation::default() }.validate().is_err());
        assert!(Augmentation { rotation: f64::NAN, ..Augmentation::default() }.validate().is_err());
        assert!(!Augmentation { rotation: 1.0, ..Augmentation::default() }.is_identity());
        assert!(!Augmentation { auto_augment: true, ..Augmentation::default() }.is_identity());
        assert!(Augmentation::default().validate().is_ok());
    }
}
