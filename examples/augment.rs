//! Shows what training augmentation does to pictures. The tests compare what it writes with torchvision and timm.
//!
//! `augment CASES.json` takes a list of cases and does each in turn:
//!
//! | case | writes |
//! |---|---|
//! | `{"apply": "ShearX", "magnitude": 0.5, "image": "a.png", "out": "b.png"}` | the image after one operation of TrivialAugment |
//! | `{"rotate": 30.0, "image": ..., "out": ...}` | the image turned by degrees |
//! | `{"crop": [x, y, width, height], "size": [width, height], "image": ..., "out": ...}` | a part of the image, resized |
//! | `{"sample": {augmentation}, "seed": 1, "epoch": 0, "row": 7, "size": ..., "image": ..., "out": ...}` | the tensor that training sees: f32 [3, height, width], not shifted or scaled beyond 0 to 1 |
//! | `{"mix": 0.3, "cut": [top, bottom, left, right], "shape": [B, 3, H, W], "pixels": "a.f32", "out": ...}` | a batch mixed with itself; without `cut` it is averaged |
//! | `{"draws": {mixup settings}, "count": 100, "size": [height, width], "out": "c.json"}` | what is drawn for so many batches |
//! | `{"around": [row, column], "lambda": 0.3, "size": [height, width], "out": ...}` | the rectangle of cutmix and its lambda |
//! | `{"bins": 31, "out": ...}` | the magnitudes of the first bins of every operation |

use medtune::config::training::Mixup;
use medtune::imaging::mix::Rectangle;
use medtune::imaging::{
    Augmentation, Mix, Operation, PixelContract, RgbImage, SampleRng, decode, geometry, load_training, resize_cropped,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Case {
    Apply { apply: String, magnitude: f64, image: PathBuf, out: PathBuf },
    Rotate { rotate: f64, image: PathBuf, out: PathBuf },
    Crop { crop: [usize; 4], size: [usize; 2], image: PathBuf, out: PathBuf },
    Sample { sample: Augmentation, seed: u64, epoch: u64, row: u64, size: [u32; 2], image: PathBuf, out: PathBuf },
    Mix { mix: f64, cut: Option<[usize; 4]>, shape: [usize; 4], pixels: PathBuf, out: PathBuf },
    Draws { draws: Draws, count: u64, size: [usize; 2], out: PathBuf },
    Around { around: [usize; 2], lambda: f64, size: [usize; 2], out: PathBuf },
    Bins { bins: usize, out: PathBuf },
}

#[derive(Deserialize)]
struct Draws {
    probability: f64,
    mixup_alpha: f64,
    cutmix_alpha: f64,
    cutmix_minmax: Option<[f64; 2]>,
    switch_probability: f64,
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: augment CASES.json"))?;
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(path)?)?;
    cases.into_iter().try_for_each(run)
}

fn run(case: Case) -> anyhow::Result<()> {
    match case {
        Case::Apply { apply, magnitude, image, out } => {
            let operation = Operation::from_name(&apply).ok_or_else(|| anyhow::anyhow!("no operation '{apply}'"))?;
            write_image(&operation.apply(read_image(&image)?, magnitude), &out)
        }
        Case::Rotate { rotate, image, out } => write_image(&geometry::rotate(&read_image(&image)?, rotate), &out),
        Case::Crop { crop, size, image, out } => {
            write_image(&resize_cropped(&read_image(&image)?, crop, size[0], size[1])?, &out)
        }
        Case::Sample { sample, seed, epoch, row, size, image, out } => {
            sample.validate()?;
            let contract =
                PixelContract { image_size: size, mean: [0.0; 3], std: [1.0; 3], ..PixelContract::default() };
            let mut values = vec![0.0; contract.tensor_len()];
            load_training(&contract, &sample, &fs::read(image)?, &mut SampleRng::new(seed, epoch, row), &mut values)?;
            write_floats(&values, &out)
        }
        Case::Mix { mix, cut, shape: [_, _, height, width], pixels, out } => {
            let bytes = fs::read(pixels)?;
            let mut values: Vec<f32> = bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
            let cut = cut.map(|[top, bottom, left, right]| Rectangle { top, bottom, left, right });
            Mix { lambda: mix, cut }.apply(&mut values, [height, width])?;
            write_floats(&values, &out)
        }
        Case::Draws { draws, count, size, out } => {
            let Draws { probability, mixup_alpha, cutmix_alpha, cutmix_minmax, switch_probability } = draws;
            let settings = Mixup { probability, mixup_alpha, cutmix_alpha, cutmix_minmax, switch_probability };
            let drawn = (0..count).map(|n| match Mix::draw(&settings, size, &mut SampleRng::new(11, 0, n)) {
                None => Value::Null,
                Some(mix) => json!({ "lambda": mix.lambda, "cut": mix.cut.map(sides) }),
            });
            Ok(fs::write(out, serde_json::to_vec(&drawn.collect::<Vec<_>>())?)?)
        }
        Case::Around { around, lambda, size, out } => {
            let rectangle = Rectangle::around(around, size, lambda);
            let answer = json!({ "cut": sides(rectangle), "lambda": rectangle.lambda(size) });
            Ok(fs::write(out, serde_json::to_vec(&answer)?)?)
        }
        Case::Bins { bins, out } => {
            let magnitudes = |operation: Operation| (0..bins).map(|bin| operation.magnitude(bin)).collect::<Vec<_>>();
            let all = Operation::ALL.map(|o| json!([format!("{o:?}"), magnitudes(o), o.is_signed()]));
            Ok(fs::write(out, serde_json::to_vec(&all)?)?)
        }
    }
}

fn sides(rectangle: Rectangle) -> [usize; 4] {
    [rectangle.top, rectangle.bottom, rectangle.left, rectangle.right]
}

fn read_image(path: &Path) -> anyhow::Result<RgbImage> {
    Ok(decode(&fs::read(path)?)?)
}

fn write_image(image: &RgbImage, path: &Path) -> anyhow::Result<()> {
    let (width, height) = (u32::try_from(image.width())?, u32::try_from(image.height())?);
    Ok(image::save_buffer(path, image.pixels(), width, height, image::ExtendedColorType::Rgb8)?)
}

fn write_floats(values: &[f32], path: &Path) -> anyhow::Result<()> {
    Ok(fs::write(path, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?)
}
