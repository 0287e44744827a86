//! `self-test.json`: made-up images, texts, and what the model answered when it was packaged. Whoever has the package can ask it again.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::SELF_TEST_FILE;
use crate::error::{Context, Error, Result};

/// The format that is written, and the only one that is read.
const FORMAT_VERSION: u32 = 1;

/// How far an answer may be from the expected one, in any value. Vectors have length 1 and scores add up to 1.
pub const TOLERANCE: f64 = 1e-4;

/// One image of the self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenImage {
    /// What it is called in messages.
    pub name: String,
    /// The encoded image, in base64. Made by a formula: it is published with every package.
    pub base64: String,
}

/// What a model answers. A classifier has `scores` only, an embedding model the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// Unit vectors of the images, [images, P].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_features: Vec<Vec<f32>>,
    /// Unit vectors of the texts, [texts, P].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text_features: Vec<Vec<f32>>,
    /// The logarithm of the scale of similarities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f32>,
    /// Scores of the images in class order, [images, classes].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Vec<f32>>,
}

/// What a check that a package has passed came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The largest difference of any value that this program computes from the expected one; `None` without libtorch.
    pub own: Option<f64>,
    /// Programs of the Python that was named.
    pub others: Asked,
}

/// Which programs gave the expected answers: the package's loader, and ONNX Runtime where it holds ONNX models.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// Those that did; none without a Python.
    pub passed: Vec<Passed>,
    /// Who was not asked, and why.
    pub not_asked: Option<String>,
}

/// A program whose answers are the expected ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Passed {
    /// What it is, with versions.
    pub name: String,
    /// The largest difference of any value from the expected one.
    pub difference: f64,
}

/// The content of `self-test.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Version of this format; 1.
    format_version: u32,
    /// The images.
    pub images: Vec<GoldenImage>,
    /// The texts; none for classifiers.
    pub texts: Vec<String>,
    /// What the model answered.
    pub expected: Answers,
}

impl SelfTest {
    /// A self-test of `images`, each a name and its encoded bytes, with what the model answers.
    ///
    /// # Errors
    /// As [`SelfTest::compare`] of `expected` with itself: a model whose answers are no numbers has no self-test.
    pub fn new(images: &[(String, Vec<u8>)], texts: Vec<String>, expected: Answers) -> Result<SelfTest> {
        let images = images
            .iter()
            .map(|(name, bytes)| GoldenImage { name: name.clone(), base64: BASE64_STANDARD.encode(bytes) })
            .collect();
        let made = SelfTest { format_version: FORMAT_VERSION, images, texts, expected };
        made.asks_something()?;
        made.compare(&made.expected)?;
        Ok(made)
    }

    /// The self-test of the package in `folder`; `None` for packages of before there were any.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) naming the file, if it is there and cannot be used.
    pub fn read(folder: &Path) -> Result<Option<SelfTest>> {
        let path = folder.join(SELF_TEST_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        SelfTest::parse(&bytes).map(Some).context(|| format!("'{}'", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<SelfTest> {
        let test: SelfTest =
            serde_json::from_slice(bytes).map_err(|e| Error::package("not a self-test").with_source(e))?;
        if test.format_version != FORMAT_VERSION {
            return Err(Error::package(format!(
                "format version {} is not supported, only {FORMAT_VERSION}: use a newer medtune",
                test.format_version
            )));
        }
        test.asks_something()?;
        Ok(test)
    }

    /// A test that expects nothing would be passed by anything.
    fn asks_something(&self) -> Result<()> {
        let answered = self.expected.scores.len().max(self.expected.image_features.len());
        if self.images.is_empty() || answered != self.images.len() {
            return Err(Error::package("not a self-test: it has no expected answer for each of its images"));
        }
        Ok(())
    }

    /// The file's text.
    pub(super) fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map(|text| text + "\n")
            .map_err(|e| Error::internal("cannot write the self-test").with_source(e))
    }

    /// The images' names and encoded bytes.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) naming the image that is no base64.
    pub fn decoded(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let decode = |image: &GoldenImage| {
            let bytes = BASE64_STANDARD.decode(&image.base64).map_err(|e| {
                Error::package(format!("{SELF_TEST_FILE}: image '{}' is no base64", image.name)).with_source(e)
            })?;
            Ok((image.name.clone(), bytes))
        };
        self.images.iter().map(decode).collect()
    }

    /// The largest difference between `found` and what is expected.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package), naming the image or text, where a value is further away than [`TOLERANCE`], is no number,
    /// or is missing.
    pub fn compare(&self, found: &Answers) -> Result<f64> {
        let expected = &self.expected;
        let images: Vec<String> = self.images.iter().map(|image| format!("image '{}'", image.name)).collect();
        let texts: Vec<String> = self.texts.iter().map(|text| format!("text '{text}'")).collect();
        let scale = |answers: &Answers| answers.scaling_factor.map(|v| vec![v]).into_iter().collect::<Vec<_>>();
        let largest = [
            largest("image_features", &images, &expected.image_features, &found.image_features)?,
            largest("text_features", &texts, &expected.text_features, &found.text_features)?,
            largest("scores", &images, &expected.scores, &found.scores)?,
            largest("values", &["scaling_factor".to_owned()], &scale(expected), &scale(found))?,
        ];
        Ok(largest.into_iter().fold(0.0, f64::max))
    }
}

/// The largest difference of any value in the rows of one kind of answer, whose names are `names`; there may be none of that kind.
fn largest(what: &str, names: &[String], expected: &[Vec<f32>], found: &[Vec<f32>]) -> Result<f64> {
    if expected.len() != found.len() || (!expected.is_empty() && expected.len() != names.len()) {
        return Err(Error::package(format!(
            "the self-test expects {} rows of {what}, it was answered with {}",
            expected.len(),
            found.len()
        )));
    }
    let mut largest = 0.0f64;
    for (name, (expected, found)) in names.iter().zip(expected.iter().zip(found)) {
        let difference = difference(expected, found).ok_or_else(|| {
            let count = expected.len();
            let finite = found.iter().all(|value| value.is_finite());
            let why = if finite { "" } else { "; the weights are damaged, train or import again" };
            Error::package(format!("the self-test's {name}: {what} should be {count} finite numbers{why}"))
        })?;
        if difference > TOLERANCE {
            return Err(Error::package(format!(
                "the self-test's {name}: {what} differ by {difference:.1e} from those of the packaging, {TOLERANCE:.0e} is allowed: get the package again, or use \
                 other versions of the program that answered"
            )));
        }
        largest = largest.max(difference);
    }
    Ok(largest)
}

/// The largest difference of two rows; `None` when they are not of one length or hold what is no number.
fn difference(expected: &[f32], found: &[f32]) -> Option<f64> {
    if expected.len() != found.len() || expected.iter().chain(found).any(|v| !v.is_finite()) {
        return None;
    }
    Some(expected.iter().zip(found).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> Vec<(String, Vec<u8>)> {
        vec![("ramp".to_owned(), vec![1, 2]), ("rings".to_owned(), vec![3])]
    }

    fn classifier(scores: [[f32; 2]; 2]) -> Answers {
        Answers { scores: scores.map(Vec::from).into(), ..Answers::default() }
    }

    #[test]
    fn it_comes_back_as_it_was_written() {
        let test = SelfTest::new(&images(), Vec::new(), classifier([[0.25, 0.75], [0.5, 0.5]])).unwrap();
        let back = SelfTest::parse(test.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!((&back, back.decoded().unwrap()), (&test, images()));
        let newer = test.to_json().unwrap().replace("\"format_version\":1", "\"format_version\":2");
        assert!(SelfTest::parse(newer.as_bytes()).unwrap_err().to_string().contains("newer"));
        let hollow = r#"{"format_version": 1, "images": [], "texts": [], "expected": {"scaling_factor": 4.6}}"#;
        assert!(SelfTest::parse(hollow.as_bytes()).unwrap_err().to_string().contains("no expected answer"));
    }

    #[test]
    fn only_what_is_near_enough_passes() {
        let test = SelfTest::new(&images(), Vec::new(), classifier([[0.25, 0.75], [0.5, 0.5]])).unwrap();
        let near = test.compare(&classifier([[0.25, 0.75], [0.50005, 0.49995]])).unwrap();
        assert!((near - 5e-5).abs() < 1e-6, "{near}");
        let says = |found: Answers| test.compare(&found).unwrap_err().to_string();
        assert!(says(classifier([[0.25, 0.75], [0.502, 0.498]])).contains("image 'rings': scores differ by 2.0e-3"));
        assert!(says(classifier([[f32::NAN, 0.75], [0.5, 0.5]])).contains("image 'ramp'"));
        assert!(says(Answers::default()).contains("2 rows of scores"));
        let other = Answers { scores: vec![vec![0.25], vec![0.5]], ..Answers::default() };
        assert!(says(other).ends_with("should be 2 finite numbers"));
    }

    #[test]
    fn answers_that_are_no_numbers_make_no_self_test() {
        for (scale, vector) in [(f32::NAN, 1.0), (4.6, f32::INFINITY)] {
            let answers = Answers {
                image_features: vec![vec![vector], vec![1.0]],
                text_features: vec![vec![1.0]],
                scaling_factor: Some(scale),
                ..Answers::default()
            };
            let error = SelfTest::new(&images(), vec!["a polyp".to_owned()], answers).unwrap_err();
            assert!(error.to_string().contains("damaged"), "{error}");
        }
    }
}
