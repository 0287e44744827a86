//! The self-test of packages: what a model answers to made-up images when it is packaged, and whether it still does.
//!
//! Several implementations are held against one another: the expected answers come from the layers that training goes through, in f32; they are
//! computed again from the written package by the layers of inference; and, where the user names a Python that has MLflow, by the loader
//! in the package, and by ONNX Runtime where it holds ONNX models. A package that does not pass is not published.

use super::predict::Head;
use crate::error::{Context, Result};
use crate::imaging::{RgbImage, encode_jpeg};
use crate::infer::{Encoder, read_model_config};
use crate::model::{onnx, weights};
use crate::package::{
    Answers, Asked, Checked, MODEL_CONFIG_FILE, Package, PackageConfig, PackageSpec, PythonLoader, SelfTest, Task,
    read_package, write_package,
};
use std::path::Path;
use tch::Device;

/// Texts of embedding models: a short one and one of several words, cut into pieces by any vocabulary.
const TEXTS: [&str; 2] = ["normal chest radiograph", "x-ray of the left knee, 2 projections; no fracture (µ ≤ 0.5)"];
const QUALITY: u8 = 90;

/// Writes a package that has a self-test, and checks it: after this call it may be published. ONNX models, where its configuration names them, are
/// written into the folder of checkpoints first.
///
/// # Errors
/// Those of [`write_package`] and [`check`]; [`crate::ErrorKind::Package`] for weights whose answers are no finite numbers.
pub(super) fn write_checked(spec: &PackageSpec<'_>, folder: &Path, python: Option<&PythonLoader>) -> Result<()> {
    if spec.config.onnx {
        let model = read_model_config(&spec.checkpoints.join(MODEL_CONFIG_FILE))?;
        onnx::write(spec.checkpoints, &spec.config, &model).context(|| "ONNX models")?;
    }
    let test = make(spec.checkpoints, &spec.config).context(|| "self-test")?;
    write_package(spec, &test, folder)?;
    if let Some(checked) = check(&read_package(folder)?, python)? {
        log(&checked);
    }
    Ok(())
}

/// For whoever publishes, and has no other place to say it.
pub(super) fn log(Checked { own, others }: &Checked) {
    let passed =
        |by: &str, difference: f64| tracing::info!(%by, difference = %format!("{difference:.1e}"), "self-test passed");
    if let Some(difference) = *own {
        passed("medtune", difference);
    }
    for program in &others.passed {
        passed(&program.name, program.difference);
    }
    if let Some(why) = &others.not_asked {
        tracing::warn!("self-test: {why}");
    }
}

/// Asks the package's model again what its self-test asks; without one, `None`.
///
/// # Errors
/// [`crate::ErrorKind::Package`], naming the image or text, where an answer is not the expected one, or when MLflow or ONNX Runtime cannot use the package;
/// those of [`PythonLoader::check`].
pub fn check(package: &Package, python: Option<&PythonLoader>) -> Result<Option<Checked>> {
    let Some(test) = SelfTest::read(&package.dir)? else { return Ok(None) };
    medtune_native::tune_allocator();
    let answered = || {
        let encoder = Encoder::load(package, Device::Cpu)?;
        answers(&encoder, (&package.checkpoints(), &package.config), &test.decoded()?, &test.texts)
    };
    let own = answered().and_then(|found| test.compare(&found)).context(|| "self-test")?;
    let others = python.map_or(Ok(Asked::default()), |python| python.check(&package.dir, &test))?;
    Ok(Some(Checked { own: Some(own), others }))
}

/// The self-test of what is in a folder of checkpoints.
fn make(checkpoints: &Path, config: &PackageConfig) -> Result<SelfTest> {
    let images = images()?;
    let texts = match config.task {
        Task::Embeddings => TEXTS.map(str::to_owned).to_vec(),
        Task::Classification => Vec::new(),
    };
    medtune_native::tune_allocator();
    let encoder = Encoder::plain(checkpoints, config)?;
    // what no image or text of the test comes by is served, too
    if let Some(classifier) = &config.classifier {
        for file in [&classifier.class_embeddings, &classifier.adapter].into_iter().flatten() {
            let tensors = weights::read_tensors(&checkpoints.join(file))?;
            weights::check_finite(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), file)?;
        }
    }
    let expected = answers(&encoder, (checkpoints, config), &images, &texts)?;
    SelfTest::new(&images, texts, expected)
}

/// What a model answers, all images together.
fn answers(
    encoder: &Encoder,
    (checkpoints, config): (&Path, &PackageConfig),
    images: &[(String, Vec<u8>)],
    texts: &[String],
) -> Result<Answers> {
    let rows = |values: Vec<f32>, width: usize| values.chunks_exact(width).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let features = encoder.encode_images(images)?;
    Ok(match config.task {
        Task::Embeddings => Answers {
            image_features: rows(features, encoder.dim()),
            text_features: rows(encoder.encode_texts(texts)?, encoder.dim()),
            scaling_factor: Some(encoder.logit_scale()? as f32),
            scores: Vec::new(),
        },
        Task::Classification => {
            let head = Head::read((checkpoints, config), encoder.logit_scale()?, encoder.dim())?;
            Answers { scores: rows(head.scores(&features, encoder.dim())?, head.classes()), ..Answers::default() }
        }
    })
}

/// Made-up pictures, upright, flat and square, in colour and grey, smooth and sharp: published with every package, so never anybody's image.
fn images() -> Result<Vec<(String, Vec<u8>)>> {
    let mut state = 1u32;
    let mut noise = move || {
        // Numerical Recipes' generator; its high bits are the good ones
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let colours = |x: usize, y: usize| [(x * 255 / 95) as u8, (y * 255 / 63) as u8, ((x + y) * 255 / 158) as u8];
    let rings = |x: usize, y: usize| [((x.abs_diff(32).pow(2) + y.abs_diff(48).pow(2)) / 6 % 256) as u8; 3];
    Ok(vec![
        ("colours".to_owned(), jpeg(96, 64, colours)?),
        ("rings".to_owned(), jpeg(64, 96, rings)?),
        ("noise".to_owned(), jpeg(48, 48, |_, _| [noise(), noise(), noise()])?),
    ])
}

fn jpeg(width: usize, height: usize, mut pixel: impl FnMut(usize, usize) -> [u8; 3]) -> Result<Vec<u8>> {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for i in 0..width * height {
        pixels.extend(pixel(i % width, i / width));
    }
    encode_jpeg(&RgbImage::new(width, height, pixels)?, QUALITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_are_always_the_same_and_differ() {
        let (made, again) = (images().unwrap(), images().unwrap());
        assert_eq!(made, again);
        for (name, bytes) in &made {
            assert!(bytes.starts_with(b"\xff\xd8\xff") && bytes.len() < 8192, "{name}: {} bytes", bytes.len());
            assert_eq!(made.iter().filter(|(_, other)| other == bytes).count(), 1);
        }
    }
}
